"""Stories of grade 4, three operations."""

from copilot.tasks.arithmetic_stories import FEW, MANY, SOME, Story

GRADE_4: tuple[Story, ...] = (
    Story(
        4,
        "((a*b)+(c*d))",
        {"a": FEW, "b": FEW, "c": FEW, "d": FEW},
        train=(
            "{name} reads on {a} mornings, {b} pages at a time, and on {c} evenings, {d} pages at a time. "
            "What is the total number of pages?",
            "For {a} days {name} makes {b} {objects} a day, then for {c} days {d} a day. "
            "How many {objects} does {name} make?",
            "A train pulls {a} coaches with {b} seats each and {c} coaches with {d} seats each. "
            "How many passengers can sit down?",
            "A baker fills {a} trays with {b} rolls each before breakfast and {c} trays with {d} rolls each after it. "
            "How many rolls are baked altogether?",
            "How many coins does {name} pay for {a} {objects} at {b} coins each and {c} {things} at {d} coins each?",
            "The {place} has {a} rows of {b} seats downstairs and {c} rows of {d} seats upstairs. "
            "How many seats is that?",
            "At the {place}, {a} tables seat {b} guests each, while {c} other tables seat {d} guests each. "
            "How many guests can be seated at once?",
            "{a} children bring {b} {objects} each, and {c} adults bring {d} each. "
            "How many {objects} are brought in all?",
        ),
        validation=(
            "In a garden grow {a} rows of {b} roses and {c} rows of {d} lilies. Find the total number of flowers.",
            "{name} {gains} {a} packs of {b} {objects}, and {other} {gains} {c} packs of {d}. "
            "How many {objects} do they have together?",
            "A shop orders {a} {containers} with {b} {objects} in each and {c} {containers} with {d} in each. "
            "What is the total number of {objects}?",
        ),
        test=(
            "When {name} and {other} tidy up, {a} {containers} take {b} {objects} each and {c} {containers} take {d} "
            "{things} each. How many pieces are put away?",
            "{name} has {a} {containers} with {b} {objects} each and {c} {containers} with {d} {objects} each. "
            "How many {objects} does {name} have?",
            "On {day} {name} runs {a} laps of {b} metres. After a rest come {c} laps of {d} metres. "
            "What distance, in metres, does {name} cover?",
        ),
    ),
    Story(
        4,
        "((a*b)-(c*d))",
        {"a": FEW, "b": FEW, "c": FEW, "d": FEW},
        train=(
            "A shop orders {a} {containers}, every one with {b} {objects} inside. It sells {c} sets of {d} {objects}. "
            "How many {objects} has it left?",
            "{a} children bring {b} {objects} each, and {c} adults take {d} each back home. How many {objects} stay?",
            "There are {a} shelves of {b} books in the library. "
            "After {c} readers have borrowed {d} books each, how many books are still there?",
            "A farmer fills {a} crates with {b} pears each and delivers {c} orders of {d} pears each. "
            "Find the number of pears that are not delivered.",
            "The large hall has {a} rows of {b} chairs, and the small hall has {c} rows of {d} chairs. "
            "What is the difference in the number of chairs?",
            "{name} has {a} {containers} of {b} {objects}. {other} has {c} {containers} of {d}. "
            "How many more {objects} does {name} have than {other}?",
            "{name}'s book has {a} chapters of {b} pages each. On {c} evenings {name} reads {d} pages each time. "
            "How many pages are still unread?",
            "On {day} {name} runs {a} laps of {b} metres while {other} runs {c} laps of {d} metres. "
            "How much farther, in metres, does {name} run?",
        ),
        validation=(
            "{name} {gains} {a} packs of {b} {objects} and gives {c} friends {d} {objects} each. "
            "How many {objects} are left?",
            "How many coins does {name} have left after working {a} hours for {b} coins an hour and buying {c} "
            "{objects} for {d} coins each?",
            "The {place} has {a} rows of {b} seats, and {c} groups of {d} people take their places. "
            "How many seats stay free?",
        ),
        test=(
            "An empty tank is filled with {a} cans of {b} litres each. "
            "The gardener then waters {c} beds with {d} litres each. How many litres of water remain?",
            "For the party at the {place} {name} bakes {a} trays of {b} cakes. "
            "If {c} guests eat {d} cakes each, how many cakes will be left over?",
            "For {a} days {name} makes {b} {objects} a day. Then for {c} days {d} a day are sold. "
            "How many {objects} remain?",
        ),
    ),
    Story(
        4,
        "(((a*b)-c)/d)",
        {"a": FEW, "b": FEW, "c": SOME, "d": (3, 12)},
        train=(
            "{name} works {a} hours for {b} coins an hour, spends {c} coins at the {place} and divides the remaining "
            "coins equally among {d} cousins. How many coins does each cousin receive?",
            "If {a} coaches bring {b} players each and {c} players are injured, how many teams of {d} can the others "
            "form?",
            "{name} has {a} {containers} of {b} {objects}, {loses} {c} and divides the rest equally among {d} friends. "
            "How many {objects} does each friend get?",
            "{name} {gains} {a} packs of {b} {objects}. {c} are broken, the others go into groups of {d}. "
            "How many groups are there?",
            "{name} empties {a} {containers} with {b} {objects} in each, keeps {c} and splits the remaining ones into "
            "{d} equal piles. How many {objects} are in one pile?",
            "A gardener raises {a} trays of {b} seedlings. After frost kills {c}, the survivors are planted in {d} "
            "equal rows. Find the number of seedlings in each row.",
            "From {a} rolls with {b} metres of ribbon each, {name} uses {c} metres for a banner and cuts the rest into "
            "{d} equal pieces. How many metres long is each piece?",
            "From {a} rows of {b} {objects} {name} removes {c} and makes {d} equal rows of the rest. "
            "How many {objects} are in each new row?",
        ),
        validation=(
            "For a trip {a} classes of {b} pupils sign up, but {c} pupils fall ill. "
            "The others travel in {d} buses with equally many pupils in each. How many pupils ride in one bus?",
            "On {day} {name} and {other} unload {a} {containers} holding {b} {objects} each. They set {c} {objects} "
            "aside and send the rest to {d} shops, the same number to every shop. How many {objects} go to one shop?",
            "{a} children bring {b} {objects} each. {c} are used up, and what is left is divided evenly over {d} "
            "tables. How many {objects} lie on each table?",
        ),
        test=(
            "At the bakery {a} trays of {b} rolls come out of the oven. "
            "The staff eat {c}, and the remaining rolls are put in bags of {d}. How many bags does this make?",
            "The library receives {a} parcels of {b} books. It gives {c} books to a hospital and spreads the others "
            "evenly over {d} shelves. What is the number of books on each shelf?",
            "A shop orders {a} {containers}, every one with {b} {objects} inside. "
            "On arrival {c} turn out broken, the good ones are bundled in bunches of {d}. How many bunches are there?",
        ),
    ),
    Story(
        4,
        "((a*(b+c))-d)",
        {"a": FEW, "b": FEW, "c": FEW, "d": SOME},
        train=(
            "On each of {a} shelves stand {b} novels and {c} atlases. Readers borrow {d} of these books. "
            "What is the number of books that remain?",
            "A shop orders {a} {containers}, every one with {b} {objects} and {c} {things} inside. "
            "On arrival {d} pieces turn out broken. How many pieces are undamaged?",
            "In each of {a} weeks {name} makes {b} {objects} and {other} makes {c}. They sell {d}. "
            "How many {objects} do they still have?",
            "Inside each of {a} parcels {name} discovers {b} {objects} and {c} {things}. "
            "After giving {d} of these pieces to {other}, how many pieces does {name} have?",
            "There are {a} teams, each with {b} girls and {c} boys. {d} children go home. How many children stay?",
            "At the {place} {a} buses arrive, each with {b} adults and {c} children on board. "
            "Of these people, {d} leave early. Find the number of people who stay.",
            "In each of {a} matches {name} scores {b} points before the break and {c} points after it. "
            "Finally {d} points are taken away as a penalty. What is {name}'s total score?",
            "Each of {a} visitors buys {b} {objects} and {c} {things}. {d} pieces are brought back. "
            "How many pieces do the visitors keep?",
        ),
        validation=(
            "A train has {a} coaches, each with {b} window seats and {c} aisle seats. "
            "If {d} seats are taken, how many are free?",
            "A florist ties {a} bunches, each of {b} roses and {c} lilies. By noon {d} flowers have wilted. "
            "How many flowers are still fresh?",
            "{name} packs {a} {containers}, each with {b} {objects} and {c} {things}. {d} pieces are taken out again. "
            "How many pieces stay packed?",
        ),
        test=(
            "For {a} days {name} {gains} {b} {objects} every morning and {c} every evening, then {loses} {d}. "
            "How many {objects} are left?",
            "A wall needs {a} layers, each of {b} red and {c} grey bricks. By {day} {d} bricks have been laid. "
            "How many more bricks are needed?",
            "How many coins does {name} keep after {a} days that each bring {b} coins in the morning and {c} in the "
            "afternoon, if {d} coins go on rent?",
        ),
    ),
    Story(
        4,
        "(a+((2*a)-b))",
        {"a": SOME, "b": SOME},
        train=(
            "How many pages do {name} and {other} read altogether in {extra} days, if {name} reads {a} pages and "
            "{other} reads {b} pages fewer than double that?",
            "In {extra} minutes {name} walks {a} metres. The way of {other} is {b} metres shorter than double that. "
            "How many metres do the two walk in all?",
            "Bus number {extra} carries {a} passengers in the morning. In the evening it carries {b} fewer than double "
            "the morning's number. Find the number of passengers carried at both times together.",
            "The {extra} clerks of a bakery sell {a} rolls on {day}. "
            "The next day they sell {b} fewer than twice that number. How many rolls do they sell over the two days?",
            "A garden with {extra} benches has {a} red roses. It has {b} fewer white roses than twice the number of "
            "red ones. How many red and white roses are there in all?",
            "The {extra} rooms of the {place} hold {a} {objects}. "
            "Its number of {things} is {b} fewer than double that. How many pieces does it have in all?",
            "After {extra} rounds of a game {name} has {a} points, while the score of {other} is {b} points below "
            "twice that. How many points do the two players have together?",
            "{name} has {a} {objects} and {extra} {things}. {other} has {b} fewer {objects} than twice as many. "
            "How many {objects} do they have together?",
        ),
        validation=(
            "On a trip that lasts {extra} hours, {name} cycles {a} kilometres before lunch and {b} kilometres less "
            "than twice that distance after lunch. How long is the whole trip in kilometres?",
            "At {extra} o'clock {name} picks {a} {objects}. {other} picks twice as many less {b}. "
            "How many {objects} are picked in total?",
            "The library lends {a} novels within {extra} hours. It also lends {b} fewer comics than twice the number "
            "of novels. What is the total number of novels and comics lent?",
        ),
        test=(
            "{other} has {b} fewer {objects} than twice as many as {name}, who has {a} {objects} and {extra} {things}. "
            "How many {objects} do both have?",
            "On {day} {name} sold {a} {objects} in {extra} hours, the next day {b} fewer than double that. "
            "How many {objects} were sold on both days?",
            "{name}, aged {extra}, collects {a} {objects}, and {other} collects {b} fewer than twice that many. "
            "What is the total number of {objects}?",
        ),
    ),
    Story(
        4,
        "(((a+b)-c)/d)",
        {"a": MANY, "b": SOME, "c": SOME, "d": (3, 12)},
        train=(
            "A shop has {a} {objects}, and {b} are delivered. On {day} {c} are sold, and the remaining ones fill {d} "
            "{containers} evenly. How many {objects} does each {container} hold?",
            "{name} brings {a} {objects}, {other} brings {b}. "
            "They keep {c} and pack the others in {containers} of {d}. How many {containers} are filled?",
            "A path goes {a} metres uphill and then {b} metres downhill. After the first {c} metres {name} and {other} "
            "cover the rest in {d} equal stages. How long is one stage in metres?",
            "{name} and {other} put their {a} and {b} {objects} together, keep {c} and divide what is left evenly "
            "between {d} cousins. How many {objects} does each cousin receive?",
            "In the kitchen {name} mixes {a} grams of flour with {b} grams of sugar, spills {c} grams and spreads what "
            "is left evenly over {d} bowls. How many grams are in each bowl?",
            "A gardener grows {a} red and {b} yellow roses. "
            "Snails eat {c} of them, and all the others are tied in bunches of {d}. What is the number of bunches?",
            "On {day} {a} adults and {b} children book a boat trip, but {c} of them stay at home. "
            "The others are seated in {d} boats, equally many in each. How many people are in one boat?",
            "{name} earns {a} coins on {day} and {b} coins the day after. Once {c} coins are spent on {objects}, the "
            "remaining coins are split equally among {d} friends. How many coins does each friend get?",
        ),
        validation=(
            "If {a} girls and {b} boys come to the {place} to play but {c} children are too tired, how many teams of "
            "{d} can the other children form?",
            "At the {place} there are {a} {objects} and {b} {things}. "
            "{c} pieces are removed, the remaining ones laid out in {d} equal rows. How many pieces are in one row?",
            "A class made {a} {objects} on {day} and {b} the next day. "
            "{c} broke, the others go to {d} schools equally. How many does each school get?",
        ),
        test=(
            "{name} has {a} {objects}, {gains} {b} more and {loses} {c}. "
            "What is left goes equally into {d} {containers}. How many {objects} are in each {container}?",
            "A library buys {a} novels and {b} comics. It passes {c} of these books on to a school, and the remaining "
            "ones fill {d} shelves evenly. Find the number of books on each shelf.",
            "A barrel holds {a} litres of water, and rain adds {b} litres. After {c} litres leak out, the rest lasts "
            "{d} days at the same amount per day. How many litres are used each day?",
        ),
    ),
)
