"""Stories of grade 2, two operations."""

from copilot.tasks.arithmetic_stories import FEW, MANY, SOME, Story

GRADE_2: tuple[Story, ...] = (
    Story(
        2,
        "((a-b)/c)",
        {"a": MANY, "b": SOME, "c": (3, 12)},
        train=(
            "A library owns {a} books, of which {b} are lent out. "
            "The others stand on {c} shelves, equally many on each. How many books are on one shelf?",
            "A rope is {a} metres long. After {b} metres have been cut off, the rest is cut into {c} pieces of the "
            "same length. How many metres long is each piece?",
            "Of {a} {objects}, {b} are broken. {name} shares the others equally among {c} friends. "
            "How many {objects} does each friend get?",
            "{name} gathers {a} {objects}, keeps {b} and divides what is left evenly between {c} neighbours. "
            "How many {objects} does each neighbour receive?",
            "{name} has {a} {objects}, {loses} {b} and puts the rest equally into {c} {containers}. "
            "How many {objects} are in each {container}?",
            "A guide expects {a} visitors at the {place}, but {b} do not come. "
            "Find the number of visitors in each group if the others form {c} groups of the same size.",
            "A book has {a} pages. {name} has already read {b} of them and now reads {c} pages a day. "
            "How many more days does {name} need to finish it?",
            "{name} has {a} coins, pays {b} for the bus to the {place} and spends all the rest on {objects} at {c} "
            "coins each. How many {objects} does {name} buy?",
        ),
        validation=(
            "A shop orders {a} {objects} and sells {b} of them on {day}. "
            "The remaining ones are arranged in {c} equal rows. Find the number of {objects} in each row.",
            "From {a} {objects} {name} takes {b} out and sorts the remaining ones into {c} equal piles. "
            "How many {objects} are in one pile?",
            "At first {name} has {a} {objects}. Then {name} {loses} {b} of them and ties up all the others in bundles "
            "of {c}. What is the number of bundles?",
        ),
        test=(
            "{name} made {a} {objects}, kept {b} and packed the rest in {containers} of {c}. "
            "How many {containers} did {name} fill?",
            "A gardener has {a} bulbs to plant. Once {b} of them are in the ground, {c} helpers plant all the others, "
            "each the same number. How many bulbs does each helper plant?",
            "A shop orders {a} {objects}. On arrival {b} turn out broken, and the good ones fill {c} {containers} "
            "evenly. How many {objects} does each {container} hold?",
        ),
    ),
    Story(
        2,
        "((a+b)/c)",
        {"a": MANY, "b": SOME, "c": (3, 12)},
        train=(
            "On {day} {name} picks {a} {objects} and {other} picks {b}. They bundle them all in bunches of {c}. "
            "How many bunches do they get?",
            "{name} and {other} put their {a} and {b} {objects} together and divide them evenly between {c} cousins. "
            "How many {objects} does each cousin receive?",
            "{name} has {a} {objects} and {gains} {b} more. All go equally into {c} {containers}. "
            "How many {objects} are in each {container}?",
            "There are {a} {objects} in one {container} and {b} in another. "
            "If {c} children share all of them equally, what is the number of {objects} for each child?",
            "A kitchen has {a} eggs and gets {b} more. Each cake takes {c} eggs. "
            "How many cakes can be baked with all the eggs?",
            "At the {place} {a} {objects} and {b} {things} are laid out in {c} equal rows. "
            "How many pieces are in one row?",
            "For a party at the {place}, {a} children and {b} adults sit down at tables for {c} people, and no seat "
            "stays empty. How many tables do they use?",
            "A shop orders {a} {objects} on {day} and {b} more a day later. "
            "Both deliveries together fill {c} {containers} evenly. How many {objects} does one {container} hold?",
        ),
        validation=(
            "Two trains bring {a} and {b} pupils to a sports day. "
            "All the pupils together form {c} teams of equal size. How many pupils are in each team?",
            "{name} brings {a} {objects} and {other} brings {b}. They share all equally among {c} children. "
            "How many {objects} does each child get?",
            "A gardener plants {a} red and {b} yellow tulips in {c} beds, with equally many flowers in each bed. "
            "Find the number of flowers in one bed.",
        ),
        test=(
            "A library receives {a} novels and {b} atlases, which all go onto {c} empty shelves, the same number on "
            "each. What is the number of books per shelf?",
            "A class made {a} {objects} on {day} and {b} the next day, and packed them in {containers} of {c}. "
            "How many {containers} were filled?",
            "A cycling trip goes {a} kilometres along the coast and then {b} kilometres inland. "
            "{name} spreads it evenly over {c} days. How many kilometres does {name} cycle each day?",
        ),
    ),
    Story(
        2,
        "((a*b)+c)",
        {"a": FEW, "b": FEW, "c": SOME},
        train=(
            "{name} fills {a} {containers} with {b} {objects} each and has {c} {objects} left over. "
            "How many {objects} did {name} have at the start?",
            "For {a} days {name} reads {b} pages a day, and on the day after that the last {c} pages. "
            "How many pages does the book have?",
            "{name} {gains} {a} packs of {b} {objects}. Then {other} gives {name} {c} more {objects}. "
            "How many {objects} does {name} have now?",
            "Before breakfast a baker makes {a} trays of {b} rolls, and at noon {c} more rolls. "
            "How many rolls is that altogether?",
            "Last year {name}'s {objects} exactly filled {a} {containers} with {b} in each. "
            "Since then {other} has given {name} {c} more {objects}. What is the total number of {objects} now?",
            "Each of {a} children brings {b} {objects}, and the teacher adds {c}. How many {objects} are there in all?",
            "In a tournament {a} players score {b} points each, and their captain adds {c} more points. "
            "What is the team's total number of points?",
            "On {day} {name} pays for {a} tickets at {b} coins each and for a map that costs {c} coins. "
            "How many coins does {name} spend?",
        ),
        validation=(
            "A shop orders {a} {containers}, every one with {b} {objects} inside, and finds {c} more {objects} in the "
            "cellar. What is the total number of {objects}?",
            "{name} has {a} {containers} with {b} {objects} each and {c} loose {objects}. "
            "How many {objects} does {name} have?",
            "On a school trip {a} buses carry {b} pupils each, while {c} more pupils follow by train. "
            "How many pupils go on the trip?",
        ),
        test=(
            "A gardener plants {a} beds with {b} roses in each, and then another {c} roses along the fence. "
            "Find the number of roses planted.",
            "At the {place} there are {a} benches for {b} people each and {c} single chairs. "
            "How many people can sit down there?",
            "There are {a} rows of {b} {objects} and {c} further {objects} on the floor. How many {objects} are there?",
        ),
    ),
    Story(
        2,
        "((a*b)-c)",
        {"a": FEW, "b": FEW, "c": SOME},
        train=(
            "When {name} unpacks {a} {containers} with {b} {objects} each, {c} of the {objects} turn out to be "
            "damaged. Find the number of undamaged {objects}.",
            "There are {a} rows of {b} seats at the {place}, and {c} seats are taken. How many seats are free?",
            "A train has {a} carriages with {b} seats each. When it leaves the city, {c} seats are empty. "
            "How many seats are occupied?",
            "{name} works for {a} hours at {b} coins an hour and then spends {c} coins at the {place}. "
            "How many of the earned coins are left?",
            "{a} friends bring {b} {objects} each to the {place}. By the evening {c} are used up. "
            "How many {objects} remain?",
            "A gardener sows {a} rows of {b} seeds, but birds eat {c} of the seeds. "
            "Find the number of seeds that remain.",
            "{name} has {a} {containers} with {b} {objects} each and {loses} {c} {objects}. "
            "How many {objects} are left?",
            "A book has {a} chapters of {b} pages each, and {name} still has {c} pages to go. "
            "How many pages has {name} read?",
        ),
        validation=(
            "An album has {a} pages with room for {b} photos on each. {name} has already put in {c} photos. "
            "How many more photos fit into the album?",
            "{name} {gains} {a} packs of {b} {objects} and gives {c} {objects} to {other}. "
            "How many {objects} does {name} still have?",
            "For {a} days {name} makes {b} {objects} a day. Later {c} of all these {objects} break. "
            "How many {objects} are still whole?",
        ),
        test=(
            "A shop orders {a} {containers}, every one with {b} {objects} inside, but {c} {objects} arrive broken. "
            "How many good {objects} does the shop get?",
            "For a race {a} clubs enter {b} runners each, but {c} of the runners give up on the way. "
            "What is the number of runners who reach the finish?",
            "On {day} a kitchen gets {a} cartons of {b} eggs, and the cook uses {c} eggs for pancakes. "
            "How many eggs remain?",
        ),
    ),
    Story(
        2,
        "(a*(b+c))",
        {"a": FEW, "b": FEW, "c": FEW},
        train=(
            "A shop orders {a} {containers}, every one with {b} {objects} and {c} {things} inside. "
            "How many pieces does the shop get in all?",
            "In a park there are {a} flower beds, and a gardener plants {b} roses and {c} lilies in each of them. "
            "Find the number of flowers planted.",
            "Each of {a} visitors buys {b} {objects} and {c} {things}. How many pieces are bought in total?",
            "Each of the {a} shelves in a library holds {b} novels and {c} atlases. "
            "What is the number of books on these shelves?",
            "For {a} days {name} {gains} {b} {objects} every morning and {c} every evening. "
            "How many {objects} is that altogether?",
            "{name} and {other} play {a} rounds of a game. "
            "In every round {name} scores {b} points and {other} scores {c}. How many points do they score together?",
            "A cook prepares {a} bowls of fruit salad and puts {b} strawberries and {c} grapes into each. "
            "How many pieces of fruit does the cook need?",
            "A bus makes the same round {a} times a day, {b} kilometres out and {c} kilometres back by another road. "
            "How many kilometres does it drive a day?",
        ),
        validation=(
            "A hotel has {a} floors. On every floor there are {b} small rooms and {c} large rooms. "
            "How many rooms does the hotel have?",
            "There are {a} teams, each with {b} girls and {c} boys. How many children are in the teams?",
            "{a} friends go to the {place} on {day}, and each pays {b} coins for the bus and {c} coins for lunch. "
            "What is the total number of coins they pay?",
        ),
        test=(
            "In each of {a} weeks {name} makes {b} {objects} and {other} makes {c}. "
            "How many {objects} do the two make in all?",
            "{name} trains on {a} days, each time running for {b} minutes and swimming for {c} minutes. "
            "How many minutes does {name} train in all?",
            "{name} packs {a} {containers}. Each {container} gets {b} {objects} and {c} {things}. "
            "How many pieces does {name} pack altogether?",
        ),
    ),
    Story(
        2,
        "((a*b)/c)",
        {"a": FEW, "b": FEW, "c": (3, 12)},
        train=(
            "{name} has {a} {containers} of {b} {objects} each and shares all {objects} equally among {c} friends. "
            "How many {objects} does each friend get?",
            "On {day}, {a} groups of {b} tourists travel to the {place} in minibuses, with {c} tourists in each. "
            "What is the number of minibuses?",
            "A kitchen uses up {a} packets of {b} tea bags in {c} days, the same number every day. "
            "How many tea bags does it use per day?",
            "From {a} rows of {b} {objects} {name} makes {c} equal rows. How many {objects} are in each new row?",
            "A shop orders {a} {containers}, every one with {b} {objects} inside, and bundles the {objects} in bunches "
            "of {c}. How many bunches does it get?",
            "A farmer harvests {a} rows of {b} cabbages and sells them in equal shares to {c} shops. "
            "Find the number of cabbages that each shop gets.",
            "{name} works for {a} hours at {b} coins an hour and spends all that money on {objects} at {c} coins each. "
            "How many {objects} does {name} buy?",
            "As a present from {other}, {name} gets {a} {containers} of {b} {objects} each and lays out all the "
            "{objects} in rows of {c}. What is the number of rows?",
        ),
        validation=(
            "{name} empties {a} {containers} with {b} {objects} in each and splits everything into {c} equal piles. "
            "How many {objects} are in one pile?",
            "{name} is going to read {a} stories of {b} pages each, at {c} pages a day. "
            "How many days does {name} need for all of them?",
            "For the sports day {a} classes of {b} pupils each are mixed and divided into {c} equal teams. "
            "How many pupils are in one team?",
        ),
        test=(
            "A relay race is {a} laps of {b} metres long, and all {c} runners of a team run equally far. "
            "Find the number of metres for each runner.",
            "{name} {gains} {a} packs of {b} {objects} and sorts them into groups of {c}. "
            "How many groups does {name} make?",
            "{a} children bring {b} {objects} each, which are divided evenly over {c} tables. "
            "How many {objects} lie on each table?",
        ),
    ),
)
