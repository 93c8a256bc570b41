"""Stories of grade 3, comparisons and numbers the question does not need, and grade 4, three operations."""

from copilot.tasks.arithmetic_stories import FEW, MANY, SOME, Story

HARD_STORIES: tuple[Story, ...] = (
    # Grade 3: comparisons, and numbers the question does not need.
    Story(
        3,
        "((2*a)-b)",
        {"a": SOME, "b": SOME},
        train=(
            "{name} has {a} {objects}. {other} has {b} fewer than twice as many. How many {objects} does {other} have?",
            "{other} has {b} fewer {objects} than twice as many as {name}, who has {a}. How many does {other} have?",
            "On {day} {name} sold {a} {objects}, the next day {b} fewer than double that. How many was that next day?",
        ),
        validation=(
            "{name} picks {a} {objects}. {other} picks twice as many less {b}. How many {objects} does {other} pick?",
        ),
        test=(
            "The {place} has {a} {objects}. Its number of {things} is {b} fewer than double that. "
            "How many {things} does it have?",
            "{name} walks {a} metres. The way of {other} is {b} metres shorter than double that. "
            "How many metres does {other} walk?",
        ),
    ),
    Story(
        3,
        "((3*a)+b)",
        {"a": SOME, "b": SOME},
        train=(
            "{name} has {a} {objects}. {other} has {b} more than three times as many. "
            "How many {objects} does {other} have?",
            "{other} has {b} more {objects} than three times as many as {name}, who has {a}. "
            "How many does {other} have?",
            "On {day} {name} sold {a} {objects}, the next day {b} more than triple that. How many was that next day?",
        ),
        validation=(
            "{name} picks {a} {objects}. {other} picks three times as many plus {b}. "
            "How many {objects} does {other} pick?",
        ),
        test=(
            "The {place} has {a} {objects}. Its number of {things} is {b} more than triple that. "
            "How many {things} does it have?",
            "{name} walks {a} metres. The way of {other} is {b} metres longer than triple that. "
            "How many metres does {other} walk?",
        ),
    ),
    Story(
        3,
        "(a+(a+b))",
        {"a": MANY, "b": SOME},
        train=(
            "{name} has {a} {objects}. {other} has {b} more than {name}. How many {objects} do they have together?",
            "{name} {gains} {a} {objects}, and {other} {gains} {b} more than that. How many {objects} is that in all?",
            "On {day} the {place} had {a} visitors, the next day {b} more than on {day}. How many came on both days?",
        ),
        validation=(
            "A {container} holds {a} {objects}. A second one holds {b} more than the first. How many are in the two?",
        ),
        test=(
            "{name} made {a} {objects} and {other} made {b} more than {name} did. What is the total of both?",
            "{name} walks {a} metres. The way of {other} is {b} metres longer. How many metres do the two walk in all?",
        ),
    ),
    Story(
        3,
        "((a-b)+c)",
        {"a": MANY, "b": SOME, "c": SOME},
        train=(
            "{name} has {a} {objects} and {extra} {things}. "
            "{name} {loses} {b} {objects} and then {gains} {c} {objects}. How many {objects} does {name} have now?",
            "A bus leaves the {place} with {a} people at {extra} o'clock. At a stop {b} get off and {c} get on. "
            "How many people are on the bus?",
            "{name}, who has {extra} cousins, had {a} {objects}, gave {b} to {other} and found {c} more. "
            "How many {objects} does {name} have?",
        ),
        validation=(
            "In the {extra} rooms of the {place} there were {a} chairs. {b} were taken away and {c} brought in. "
            "How many chairs are there now?",
        ),
        test=(
            "{name} starts with {a} {objects}. {b} get lost, {other} brings {c} {objects} and {extra} {things}. "
            "How many {objects} are there now?",
            "A shop with {extra} clerks has {a} {objects}. On {day} {b} are sold and {c} delivered. "
            "How many {objects} has it in the evening?",
        ),
    ),
    Story(
        3,
        "((a*b)+c)",
        {"a": FEW, "b": FEW, "c": SOME},
        train=(
            "{name} has {a} {containers} with {b} {objects} each, {extra} {things} and {c} loose {objects}. "
            "How many {objects} does {name} have?",
            "In {extra} minutes {name} packs {a} {containers} of {b} {objects}, and {c} {objects} stay unpacked. "
            "How many {objects} are there?",
            "{name} buys {a} packs of {b} {objects} for {extra} coins. {other} adds {c} {objects}. "
            "How many {objects} are there now?",
        ),
        validation=(
            "At {extra} o'clock {a} children arrive with {b} {objects} each, and {name} adds {c} {objects}. "
            "How many {objects} are there?",
        ),
        test=(
            "{name}, aged {extra}, fills {a} {containers} with {b} {objects} each and has {c} {objects} left over. "
            "How many {objects} were there at the start?",
            "A shop with {extra} clerks orders {a} {containers}, every one with {b} {objects} inside, and finds {c} "
            "{objects} in the cellar. What is the total number of {objects}?",
        ),
    ),
    Story(
        3,
        "((a/2)+b)",
        {"a": MANY, "b": MANY},
        train=(
            "{name} has {a} {objects}. {other} has {b} more than half as many. How many {objects} does {other} have?",
            "{name} had {a} {objects}, gave half of them to {other} and then found {b}. How many does {name} have now?",
            "Half of the {a} seats at the {place} are taken, and {b} more people sit down. "
            "How many seats are taken now?",
        ),
        validation=(
            "{name} sells half of {a} {objects} and afterwards buys {b}. How many {objects} does {name} have?",
        ),
        test=(
            "A {container} holds {a} {objects}. {name} takes out half of them and puts {b} in. "
            "How many {objects} are in it now?",
            "A shop sells half of its {a} {objects} on {day}, and {b} new ones are delivered. "
            "How many {objects} has it in the evening?",
        ),
    ),
    # Grade 4: three operations.
    Story(
        4,
        "((a*b)+(c*d))",
        {"a": FEW, "b": FEW, "c": FEW, "d": FEW},
        train=(
            "{name} has {a} {containers} with {b} {objects} each and {c} {containers} with {d} {objects} each. "
            "How many {objects} does {name} have?",
            "{name} {gains} {a} packs of {b} {objects}, and {other} {gains} {c} packs of {d}. "
            "How many {objects} do they have together?",
            "For {a} days {name} makes {b} {objects} a day, then for {c} days {d} a day. "
            "How many {objects} does {name} make?",
        ),
        validation=(
            "The {place} has {a} rows of {b} seats downstairs and {c} rows of {d} seats upstairs. "
            "How many seats is that?",
        ),
        test=(
            "{a} children bring {b} {objects} each, and {c} adults bring {d} each. "
            "How many {objects} are brought in all?",
            "A shop orders {a} {containers} with {b} {objects} inside and {c} {containers} with {d} inside. "
            "What is the total number of {objects}?",
        ),
    ),
    Story(
        4,
        "((a*b)-(c*d))",
        {"a": FEW, "b": FEW, "c": FEW, "d": FEW},
        train=(
            "{name} has {a} {containers} of {b} {objects}. {other} has {c} {containers} of {d}. "
            "How many more {objects} does {name} have than {other}?",
            "{name} {gains} {a} packs of {b} {objects} and gives {c} friends {d} {objects} each. "
            "How many {objects} are left?",
            "For {a} days {name} makes {b} {objects} a day. Then for {c} days {d} a day are sold. "
            "How many {objects} remain?",
        ),
        validation=(
            "Of the {a} rows of {b} seats at the {place}, {c} groups of {d} people take their places. "
            "How many seats stay free?",
        ),
        test=(
            "{a} children bring {b} {objects} each, and {c} adults take {d} each back home. How many {objects} stay?",
            "A shop orders {a} {containers}, every one with {b} {objects} inside. It sells {c} sets of {d} {objects}. "
            "How many {objects} has it left?",
        ),
    ),
    Story(
        4,
        "(((a*b)-c)/d)",
        {"a": FEW, "b": FEW, "c": SOME, "d": (3, 12)},
        train=(
            "{name} has {a} {containers} of {b} {objects}, {loses} {c} and shares the rest equally among {d} friends. "
            "How many {objects} does each friend get?",
            "{name} {gains} {a} packs of {b} {objects}. {c} are broken, the others go into groups of {d}. "
            "How many groups are there?",
            "From {a} rows of {b} {objects} {name} removes {c} and makes {d} equal rows of the rest. "
            "How many {objects} are in each new row?",
        ),
        validation=(
            "{a} children bring {b} {objects} each. {c} are used up, and what is left is divided evenly over {d} "
            "tables. How many {objects} lie on each table?",
        ),
        test=(
            "{name} empties {a} {containers} with {b} {objects} in each, keeps {c} and splits the remaining ones "
            "into {d} equal piles. How many {objects} are in one pile?",
            "A shop orders {a} {containers}, every one with {b} {objects} inside. On arrival {c} turn out broken, "
            "the good ones are bundled in bunches of {d}. How many bunches are there?",
        ),
    ),
    Story(
        4,
        "((a*(b+c))-d)",
        {"a": FEW, "b": FEW, "c": FEW, "d": SOME},
        train=(
            "{name} packs {a} {containers}, each with {b} {objects} and {c} {things}. {d} pieces are taken out again. "
            "How many pieces stay packed?",
            "For {a} days {name} {gains} {b} {objects} every morning and {c} every evening, then {loses} {d}. "
            "How many {objects} are left?",
            "There are {a} teams, each with {b} girls and {c} boys. {d} children go home. How many children stay?",
        ),
        validation=(
            "Each of {a} visitors buys {b} {objects} and {c} {things}. {d} pieces are brought back. "
            "How many pieces do the visitors keep?",
        ),
        test=(
            "In each of {a} weeks {name} makes {b} {objects} and {other} makes {c}. They sell {d}. "
            "How many {objects} do they still have?",
            "A shop orders {a} {containers}, every one with {b} {objects} and {c} {things} inside. "
            "On arrival {d} pieces turn out broken. How many good pieces are there?",
        ),
    ),
    Story(
        4,
        "(a+((2*a)-b))",
        {"a": SOME, "b": SOME},
        train=(
            "{name} has {a} {objects} and {extra} {things}. {other} has {b} fewer {objects} than twice as many. "
            "How many {objects} do they have together?",
            "{other} has {b} fewer {objects} than twice as many as {name}, who has {a} {objects} and {extra} "
            "{things}. How many {objects} do both have?",
            "On {day} {name} sold {a} {objects} in {extra} hours, the next day {b} fewer than double that. "
            "How many {objects} were sold on both days?",
        ),
        validation=(
            "At {extra} o'clock {name} picks {a} {objects}. {other} picks twice as many less {b}. "
            "How many {objects} are picked in total?",
        ),
        test=(
            "The {extra} rooms of the {place} hold {a} {objects}. "
            "Its number of {things} is {b} fewer than double that. How many pieces does it have in all?",
            "In {extra} minutes {name} walks {a} metres. The way of {other} is {b} metres shorter than double that. "
            "How many metres do the two walk in all?",
        ),
    ),
    Story(
        4,
        "(((a+b)-c)/d)",
        {"a": MANY, "b": SOME, "c": SOME, "d": (3, 12)},
        train=(
            "{name} has {a} {objects}, {gains} {b} more and {loses} {c}. The rest goes equally into {d} {containers}. "
            "How many {objects} are in each {container}?",
            "{name} brings {a} {objects}, {other} brings {b}. "
            "They keep {c} and pack the others in {containers} of {d}. How many {containers} are filled?",
            "A class made {a} {objects} on {day} and {b} the next day. "
            "{c} broke, the others go to {d} schools equally. How many does each school get?",
        ),
        validation=(
            "{name} and {other} put their {a} and {b} {objects} together, keep {c} and divide what is left evenly "
            "between {d} cousins. How many {objects} does each cousin receive?",
        ),
        test=(
            "At the {place} there are {a} {objects} and {b} {things}. "
            "{c} pieces are removed, the remaining ones laid out in {d} equal rows. How many pieces are in one row?",
            "A shop has {a} {objects}, and {b} are delivered. On {day} {c} are sold, and the remaining ones fill {d} "
            "{containers} evenly. How many {objects} does each {container} hold?",
        ),
    ),
)
