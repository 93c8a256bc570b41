"""Stories of grade 3: comparisons, and numbers the question does not need."""

from copilot.tasks.arithmetic_stories import FEW, MANY, SOME, Story

GRADE_3: tuple[Story, ...] = (
    Story(
        3,
        "((2*a)-b)",
        {"a": SOME, "b": SOME},
        train=(
            "In a reading contest {name} finished {a} pages. {other} read {b} pages fewer than twice that amount. "
            "What is the number of pages that {other} read?",
            "Last spring a gardener planted {a} bulbs. This spring the number is double that, minus {b}. "
            "How many bulbs are planted this spring?",
            "On {day} {name} sold {a} {objects}, and the next day {b} fewer than double that. "
            "How many were sold the next day?",
            "{name} picks {a} {objects}. {other} picks twice as many less {b}. How many {objects} does {other} pick?",
            "{other} is saving for a trip and has {b} coins fewer than double what {name} has. "
            "{name} has saved {a} coins. Find the number of coins that {other} has.",
            "{name} walks {a} metres. {other}'s walk is {b} metres shorter than double that. "
            "How many metres does {other} walk?",
            "How many seats does the big hall have, if the small hall has {a} seats and the big one has {b} seats "
            "fewer than twice as many?",
            "The morning train carried {a} passengers. Twice as many boarded the evening train, but {b} of them got "
            "off before it left. How many passengers did the evening train carry?",
        ),
        validation=(
            "{name} has {a} {objects}. {other} has {b} fewer than twice as many. How many {objects} does {other} have?",
            "The {place} has {a} {objects}. Its number of {things} is {b} less than double that. "
            "How many {things} does it have?",
            "A {container} holds {a} {objects} and some {things}. If you double the number of {objects} and take off "
            "{b}, you get the number of {things}. How many {things} are there?",
        ),
        test=(
            "{other} has {b} fewer {objects} than twice as many as {name}, who has {a}. How many does {other} have?",
            "Twice in one week {name} {gains} {a} {objects}, and on {day} {name} {loses} {b} of them. "
            "How many {objects} remain?",
            "A recipe asks for {a} grams of sugar. {name} makes double the recipe but leaves out {b} grams of sugar. "
            "Find the number of grams that {name} uses.",
        ),
    ),
    Story(
        3,
        "((3*a)+b)",
        {"a": SOME, "b": SOME},
        train=(
            "At the {place} {name} hangs up {a} lanterns. "
            "Tripling that number and adding {b} gives the number of flags. How many flags are there?",
            "In the school library there are {a} comics. The number of novels is triple that, plus another {b}. "
            "Find the number of novels.",
            "On {day} {name} sold {a} {objects}, and the next day {b} more than triple that. "
            "How many were sold the next day?",
            "{other} has {b} more {objects} than three times as many as {name}, who has {a}. "
            "How many does {other} have?",
            "Our team scored {a} points in its first season. In its second season it scored triple that and then {b} "
            "points more. What was its score in the second season?",
            "How many metres high is the tower near the {place}, if a tree beside it is {a} metres high and the tower "
            "is {b} metres higher than three times that?",
            "A cook needs {a} grams of rice for one guest. "
            "She cooks for three guests and adds another {b} grams to be safe. What is the total number of grams?",
            "Every day for three days {name} {gains} {a} {objects}, and then {other} hands over {b} more. "
            "How many {objects} does {name} get in total?",
        ),
        validation=(
            "{name} picks {a} {objects}. {other} picks three times as many plus {b}. "
            "How many {objects} does {other} pick?",
            "A small bus can carry {a} passengers. A ferry can take {b} more than three small buses together. "
            "How many passengers can the ferry take?",
            "The {place} has {a} {objects}. Its number of {things} is {b} more than triple that. "
            "How many {things} does it have?",
        ),
        test=(
            "{name} has {a} {objects}. {other} has {b} more than three times as many. "
            "How many {objects} does {other} have?",
            "{other} swam {b} metres more than three times the distance of {name}, who swam {a} metres. "
            "Find the distance in metres that {other} swam.",
            "{name} walks {a} metres. {other}'s walk is {b} metres longer than triple that. "
            "How many metres does {other} walk?",
        ),
    ),
    Story(
        3,
        "(a+(a+b))",
        {"a": MANY, "b": SOME},
        train=(
            "{name} made {a} {objects} and {other} made {b} more than {name} did. What is the total of both?",
            "For its spring concert a choir sold {a} tickets. For the summer concert it sold {b} tickets more than in "
            "spring. How many tickets were sold for the two concerts together?",
            "Two sacks of flour stand in the bakery. One weighs {a} grams, the other {b} grams more. "
            "How much do they weigh together, in grams?",
            "What is the total number of steps, if a tower has {a} steps and a taller tower has {b} steps more?",
            "A {container} holds {a} {objects}. A second one holds {b} more than the first. How many are in the two?",
            "On {day} the {place} had {a} visitors, and the next day {b} more than on {day}. "
            "How many came on both days?",
            "{name} has {a} {objects}. {other} has {b} more than {name}. How many {objects} do they have together?",
            "{name} walks {a} metres. {other}'s walk is {b} metres longer. How many metres do the two walk in all?",
        ),
        validation=(
            "The ground floor of the library has {a} books; the upper floor has {b} more. "
            "Find the number of books on the two floors.",
            "{name} {gains} {a} {objects}, and {other} {gains} {b} more than that. How many {objects} is that in all?",
            "{name} read {a} pages in the holidays, which is {b} fewer than {other} read. "
            "How many pages did the two of them read in total?",
        ),
        test=(
            "A farmer picked {a} kilograms of cherries in June and {b} kilograms more than that in July. "
            "How many kilograms did the farmer pick in the two months?",
            "Count the {objects} and the {things} together: "
            "there are {a} {objects}, and there are {b} more {things} than {objects}. How many pieces is that?",
            "On the way to the {place} a car drives {a} kilometres. "
            "The way back is {b} kilometres longer because of a detour. How long is the whole trip in kilometres?",
        ),
    ),
    Story(
        3,
        "((a-b)+c)",
        {"a": MANY, "b": SOME, "c": SOME},
        train=(
            "A shop with {extra} clerks has {a} {objects}. On {day} {b} are sold and {c} delivered. "
            "How many {objects} has it in the evening?",
            "A library with {extra} reading rooms had {a} books on its shelves. "
            "Then {b} were borrowed and {c} came back. How many books are on the shelves now?",
            "Find the number of sheep on the meadow: "
            "{a} grazed there with {extra} goats, then {b} sheep were led away and {c} new ones arrived.",
            "Before lunch {name} had {extra} empty {containers} and {a} {objects}. Since then {b} {objects} have been "
            "given away and {c} have been bought. How many {objects} does {name} have now?",
            "{name}, who has {extra} cousins, had {a} {objects}, gave {b} to {other} and found {c} more. "
            "How many {objects} does {name} have?",
            "In a game for {extra} players {name} has {a} points, loses {b} and then earns another {c}. "
            "What is {name}'s final score?",
            "A tank that is {extra} metres deep contained {a} litres of water. "
            "After {b} litres had leaked out, {c} litres of rain fell in. How many litres does the tank contain now?",
            "{name} has {a} {objects} and {extra} {things}. "
            "{name} {loses} {b} {objects} and then {gains} {c} {objects}. How many {objects} does {name} have now?",
        ),
        validation=(
            "A bus leaves the {place} with {a} people at {extra} o'clock. At a stop {b} get off and {c} get on. "
            "How many people are on the bus?",
            "{name} starts with {a} {objects}. {b} get lost, and {other} brings {c} {objects} and {extra} {things}. "
            "How many {objects} are there now?",
            "On {day} a ferry with {extra} sailors carries {a} passengers. At the first island {b} passengers leave "
            "and {c} others come aboard. How many passengers does the ferry carry then?",
        ),
        test=(
            "How many tickets remain, if {name} and {extra} helpers begin with {a} tickets, sell {b} of them and then "
            "print {c} new ones?",
            "In the {extra} rooms of the {place} there were {a} chairs. {b} were taken away and {c} brought in. "
            "How many chairs are there now?",
            "{extra} kilometres outside the town a nursery grew {a} young trees. "
            "It sold {b} of them and planted {c} more. What is the number of trees in the nursery now?",
        ),
    ),
    Story(
        3,
        "((a*b)+c)",
        {"a": FEW, "b": FEW, "c": SOME},
        train=(
            "{name} buys {a} packs of {b} {objects} for {extra} coins. {other} adds {c} {objects}. "
            "How many {objects} are there now?",
            "A baker starts work at {extra} o'clock and fills {a} trays with {b} rolls each. "
            "Another {c} rolls are cooling on the table. How many rolls has the baker made?",
            "{other} counts the {objects}: {a} {containers} hold {b} each, and {c} lie on the floor beside {extra} "
            "{things}. How many {objects} does {other} count?",
            "In {extra} minutes {name} packs {a} {containers} of {b} {objects}, and {c} {objects} stay unpacked. "
            "How many {objects} are there?",
            "{name} hikes for {a} days with {extra} friends and covers {b} kilometres each day. "
            "On one further day {name} covers {c} kilometres. How many kilometres is that altogether?",
            "{name} has {a} {containers} with {b} {objects} each, {extra} {things} and {c} loose {objects}. "
            "How many {objects} does {name} have?",
            "Find the number of plants in a garden with {extra} paths, {a} beds of {b} plants each and {c} single "
            "plants along the fence.",
            "In a quiz {name} gives {a} right answers worth {b} points each and gets {c} bonus points as well. "
            "The quiz takes {extra} minutes. What is {name}'s score?",
        ),
        validation=(
            "{name}, aged {extra}, fills {a} {containers} with {b} {objects} each, and {c} {objects} are left over. "
            "How many {objects} were there at the start?",
            "A theatre with {extra} doors has {a} rows of {b} seats, and {c} more seats are on the balcony. "
            "How many seats does the theatre have?",
            "What is the total number of eggs, if {extra} farmers together bring {a} cartons of {b} eggs, and {c} more "
            "eggs lie in a bowl?",
        ),
        test=(
            "At {extra} o'clock {a} children arrive with {b} {objects} each, and {name} adds {c} {objects}. "
            "How many {objects} are there?",
            "A shop with {extra} clerks orders {a} {containers}, every one with {b} {objects} inside, and finds {c} "
            "{objects} in the cellar. What is the total number of {objects}?",
            "On {day} {a} buses with {b} pupils each drive to the {place}, which is {extra} kilometres away. "
            "Another {c} pupils come by bicycle. How many pupils make the trip?",
        ),
    ),
    Story(
        3,
        "((a/2)+b)",
        {"a": MANY, "b": MANY},
        train=(
            "A shop sells half of its {a} {objects} on {day}, and {b} new ones are delivered. "
            "How many {objects} has it in the evening?",
            "How many metres does {name} cover by cycling half of a trail that is {a} metres long and then walking {b} "
            "metres home?",
            "At noon {a} visitors are at the {place}. Half of them leave for lunch, and {b} new visitors arrive. "
            "What is the number of visitors now?",
            "{name} has {a} {objects}. {other} has {b} more than half as many. How many {objects} does {other} have?",
            "A cook had {a} grams of flour, baked bread with half of it and then bought {b} grams. "
            "How many grams of flour are there now?",
            "{name} had {a} {objects}, gave half of them to {other} and then found {b}. How many does {name} have now?",
            "When the game stopped, {name} had {a} points. {other} had {b} points more than half of that. "
            "Find {other}'s score.",
            "Half of the {a} seats at the {place} are removed, and {b} new seats are put in. "
            "How many seats are there now?",
        ),
        validation=(
            "One school has a choir of {a} singers. The choir of another school began with half as many, and {b} "
            "singers have joined it since. What is the size of the second choir?",
            "Find the number of books on a library cart that carries half of a delivery of {a} books and another {b} "
            "returned books.",
            "A tank is filled with {a} litres of water. Half of the water is used in the garden, and then {b} litres "
            "of rain flow in. How many litres are in the tank now?",
        ),
        test=(
            "{name} sells half of {a} {objects} and afterwards buys {b}. How many {objects} does {name} have?",
            "In spring there were {a} fish in a pond. "
            "By summer only half of them were left, and {b} young fish were added. How many fish live in the pond now?",
            "A {container} holds {a} {objects}. {name} takes out half of them and puts {b} in. "
            "How many {objects} are in it now?",
        ),
    ),
)
