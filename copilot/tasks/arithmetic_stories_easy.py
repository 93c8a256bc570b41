"""Stories of grade 1, one operation, and grade 2, two operations."""

from copilot.tasks.arithmetic_stories import FEW, MANY, SOME, Story

EASY_STORIES: tuple[Story, ...] = (
    # Grade 1: one operation.
    Story(
        1,
        "(a+b)",
        {"a": MANY, "b": MANY},
        train=(
            "{name} has {a} {objects}. {other} gives {name} {b} more. How many {objects} does {name} have now?",
            "There are {a} {objects} in a {container}. {name} adds {b} {objects}. How many are in the {container} now?",
            "On {day} {name} {gains} {a} {objects} and later {b} more. How many {objects} is that altogether?",
        ),
        validation=("At the {place} {name} counts {a} {objects} and then another {b}. What is the total number?",),
        test=(
            "{name} owns {a} {objects} and {gains} another {b} at the {place}. How many does {name} own in total?",
            "{name} gets {a} {objects} from {other} and {b} from a neighbour. "
            "How many {objects} did {name} get altogether?",
        ),
    ),
    Story(
        1,
        "(a-b)",
        {"a": MANY, "b": MANY},
        train=(
            "{name} has {a} {objects} and {loses} {b} of them. How many {objects} are left?",
            "A {container} holds {a} {objects}. {name} takes out {b}. How many {objects} remain in the {container}?",
            "{name} brought {a} {objects} to the {place} and gave {b} to {other}. How many does {name} still have?",
        ),
        validation=("Of the {a} {objects} that {name} had on {day}, {b} got lost. How many {objects} remain?",),
        test=(
            "{name} starts {day} with {a} {objects} and {loses} {b}. How many are there at the end of the day?",
            "The {place} has {a} {objects} on {day}. During the day {b} are sold. How many {objects} has it left?",
        ),
    ),
    Story(
        1,
        "(a-b)",
        {"a": MANY, "b": MANY},
        train=(
            "{name} has {a} {objects} and {other} has {b}. How many more {objects} does {name} have than {other}?",
            "The {place} sold {a} {objects} and {b} {things}. How many fewer {things} than {objects} were sold?",
            "{name} needs {a} {objects} and has only {b}. How many more {objects} does {name} need?",
        ),
        validation=(
            "There are {a} {objects} and {b} {things} on a table. By how many do the {objects} outnumber them?",
        ),
        test=(
            "{name} {gains} {a} {objects} while {other} {gains} {b}. How many more did {name} get than {other}?",
            "{name} has read {a} pages and {other} only {b}. What is the difference between the two?",
        ),
    ),
    Story(
        1,
        "(a*b)",
        {"a": FEW, "b": SOME},
        train=(
            "{name} has {a} {containers} with {b} {objects} in each. How many {objects} does {name} have?",
            "The {place} has {a} {containers}. Each {container} holds {b} {objects}. How many {objects} is that?",
            "For {a} days {name} {gains} {b} {objects} every day. How many {objects} is that altogether?",
        ),
        validation=(
            "{name} fills {a} {containers}, putting {b} {objects} into every one. How many {objects} are used?",
        ),
        test=(
            "At the {place} {a} children carry {b} {objects} each. How many {objects} do the children carry in all?",
            "A shop orders {a} {containers}, every one with {b} {objects} inside. "
            "What is the total number of {objects}?",
        ),
    ),
    Story(
        1,
        "(a/b)",
        {"a": MANY, "b": (3, 15)},
        train=(
            "{name} shares {a} {objects} equally among {b} friends. How many {objects} does each friend get?",
            "{name} puts {a} {objects} into {containers} of {b} each. How many {containers} does {name} fill?",
            "There are {a} {objects} in {b} equal rows. How many {objects} are in each row?",
        ),
        validation=("{a} {objects} are divided evenly over {b} {containers}. How many {objects} does each one hold?",),
        test=(
            "{name} has {a} {objects} and splits them equally between {b} children. How many does each child receive?",
            "At the {place} {a} {objects} stand on {b} tables, equally many on each. "
            "How many {objects} stand on one table?",
        ),
    ),
    Story(
        1,
        "(b-a)",
        {"a": MANY, "b": MANY},
        train=(
            "{name} had {a} {objects}. After {other} gave {name} some more there were {b}. How many did {other} give?",
            "A {container} held {a} {objects}. {name} added some and now it holds {b}. How many did {name} add?",
            "On {day} {name} had {a} {objects}, the next day {b}. How many {objects} came in between?",
        ),
        validation=("{name} has {a} {objects} and wants to have {b}. How many more must {name} collect?",),
        test=(
            "{name} owned {a} {objects} before the {place} opened and {b} afterwards. How many did {name} get there?",
            "A sack weighed {a} grams. With {name}'s {objects} in it, it weighs {b} grams. "
            "How many grams do the {objects} weigh?",
        ),
    ),
    # Grade 2: two operations.
    Story(
        2,
        "((a-b)/c)",
        {"a": MANY, "b": SOME, "c": (3, 12)},
        train=(
            "{name} has {a} {objects} and {loses} {b}. The rest goes equally into {c} {containers}. "
            "How many {objects} are in each {container}?",
            "Of {a} {objects} {b} are broken. {name} shares the others equally among {c} friends. "
            "How many {objects} does each friend get?",
            "{name} made {a} {objects}, kept {b} and packed the rest in {containers} of {c}. "
            "How many {containers} did {name} fill?",
        ),
        validation=(
            "{name} gathers {a} {objects}, keeps {b} and divides what is left evenly between {c} neighbours. "
            "How many {objects} does each neighbour receive?",
        ),
        test=(
            "From {a} {objects} {name} takes {b} out and sorts the remaining ones into {c} equal piles. "
            "How many {objects} are in one pile?",
            "A shop orders {a} {objects}. On arrival {b} turn out broken, and the good ones fill {c} {containers} "
            "evenly. How many {objects} does each {container} hold?",
        ),
    ),
    Story(
        2,
        "((a+b)/c)",
        {"a": MANY, "b": SOME, "c": (3, 12)},
        train=(
            "{name} has {a} {objects} and {gains} {b} more. All go equally into {c} {containers}. "
            "How many {objects} are in each {container}?",
            "{name} brings {a} {objects} and {other} brings {b}. They share all equally among {c} children. "
            "How many {objects} does each child get?",
            "A class made {a} {objects} on {day} and {b} the next day, and packed them in {containers} of {c}. "
            "How many {containers} were filled?",
        ),
        validation=(
            "{name} and {other} put their {a} and {b} {objects} together and divide them evenly between {c} cousins. "
            "How many {objects} does each cousin receive?",
        ),
        test=(
            "At the {place} {a} {objects} and {b} {things} are laid out in {c} equal rows. "
            "How many pieces are in one row?",
            "On {day} {name} picks {a} {objects} and {other} picks {b}. They bundle them all in bunches of {c}. "
            "How many bunches do they get?",
        ),
    ),
    Story(
        2,
        "((a*b)+c)",
        {"a": FEW, "b": FEW, "c": SOME},
        train=(
            "{name} has {a} {containers} with {b} {objects} each and {c} loose {objects}. "
            "How many {objects} does {name} have?",
            "{name} {gains} {a} packs of {b} {objects}. Then {other} gives {name} {c} more. "
            "How many {objects} does {name} have now?",
            "There are {a} rows of {b} {objects} and {c} further {objects} on the floor. How many {objects} are there?",
        ),
        validation=(
            "Each of {a} children brings {b} {objects}, and the teacher adds {c}. How many {objects} are there in all?",
        ),
        test=(
            "{name} fills {a} {containers} with {b} {objects} each and has {c} left over. "
            "How many {objects} were there at the start?",
            "A shop orders {a} {containers}, every one with {b} {objects} inside, and finds {c} more in the cellar. "
            "What is the total number of {objects}?",
        ),
    ),
    Story(
        2,
        "((a*b)-c)",
        {"a": FEW, "b": FEW, "c": SOME},
        train=(
            "{name} has {a} {containers} with {b} {objects} each and {loses} {c} {objects}. "
            "How many {objects} are left?",
            "{name} {gains} {a} packs of {b} {objects} and gives {c} {objects} to {other}. "
            "How many {objects} does {name} still have?",
            "There are {a} rows of {b} seats at the {place}, and {c} seats are taken. How many seats are free?",
        ),
        validation=(
            "For {a} days {name} makes {b} {objects} a day, of which {c} break. How many {objects} are still whole?",
        ),
        test=(
            "{a} friends bring {b} {objects} each to the {place}. By the evening {c} are used up. "
            "How many {objects} remain?",
            "A shop orders {a} {containers}, every one with {b} {objects} inside. On arrival {c} turn out broken. "
            "How many good {objects} are there?",
        ),
    ),
    Story(
        2,
        "(a*(b+c))",
        {"a": FEW, "b": FEW, "c": FEW},
        train=(
            "{name} packs {a} {containers}. Each {container} gets {b} {objects} and {c} {things}. "
            "How many pieces does {name} pack altogether?",
            "For {a} days {name} {gains} {b} {objects} every morning and {c} every evening. "
            "How many {objects} is that altogether?",
            "There are {a} teams, each with {b} girls and {c} boys. How many children are in the teams?",
        ),
        validation=("Each of {a} visitors buys {b} {objects} and {c} {things}. How many pieces are bought in total?",),
        test=(
            "In each of {a} weeks {name} makes {b} {objects} and {other} makes {c}. "
            "How many {objects} do the two make in all?",
            "A shop orders {a} {containers}, every one with {b} {objects} and {c} {things} inside. "
            "What is the total number of pieces?",
        ),
    ),
    Story(
        2,
        "((a*b)/c)",
        {"a": FEW, "b": FEW, "c": (3, 12)},
        train=(
            "{name} has {a} {containers} of {b} {objects} each and shares all {objects} equally among {c} friends. "
            "How many {objects} does each friend get?",
            "{name} {gains} {a} packs of {b} {objects} and sorts them into groups of {c}. "
            "How many groups does {name} make?",
            "From {a} rows of {b} {objects} {name} makes {c} equal rows. How many {objects} are in each new row?",
        ),
        validation=(
            "{a} children bring {b} {objects} each, which are divided evenly over {c} tables. "
            "How many {objects} lie on each table?",
        ),
        test=(
            "{name} empties {a} {containers} with {b} {objects} in each and splits everything into {c} equal piles. "
            "How many {objects} are in one pile?",
            "A shop orders {a} {containers}, every one with {b} {objects} inside, and bundles the {objects} in "
            "bunches of {c}. How many bunches does it get?",
        ),
    ),
)
