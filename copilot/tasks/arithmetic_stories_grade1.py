"""Stories of grade 1, one operation."""

from copilot.tasks.arithmetic_stories import FEW, MANY, SOME, Story

GRADE_1: tuple[Story, ...] = (
    Story(
        1,
        "(a+b)",
        {"a": MANY, "b": MANY},
        train=(
            "{name} swims {a} metres before breakfast and {b} metres in the evening. "
            "How many metres does {name} swim that day?",
            "{name} has {a} {objects}. {other} gives {name} {b} more. How many {objects} does {name} have now?",
            "A baker bakes {a} rolls in the morning and {b} in the afternoon. "
            "Work out how many rolls are baked in all.",
            "{name} gets {a} {objects} from {other} and {b} from a neighbour. "
            "How many {objects} did {name} get altogether?",
            "Last week {a} visitors came to the {place}, and this week there were {b}. "
            "How many came in the two weeks together?",
            "A train carries {a} passengers. At the next stop {b} people get on and nobody gets off. "
            "How many passengers are on the train now?",
            "A {container} holds {a} {objects}. {name} adds {b} {objects}. How many does the {container} hold now?",
            "At the {place} {name} counts {a} {objects} and then another {b}. What is the total number?",
        ),
        validation=(
            "On {day} {name} {gains} {a} {objects} and later {b} more. How many {objects} is that altogether?",
            "A library owns {a} books about animals and {b} about the sea. "
            "How many books about these two subjects does it own?",
            "A gardener plants {a} roses along the fence and {b} beside the pond. Find the number of roses planted.",
        ),
        test=(
            "{name} owns {a} {objects} and {gains} another {b} at the {place}. How many does {name} own in total?",
            "How many {objects} do {name} and {other} have together if {name} has {a} and {other} has {b}?",
            "A shop orders {a} {objects} in spring and {b} in autumn. What is the total number of {objects} ordered?",
        ),
    ),
    Story(
        1,
        "(a-b)",
        {"a": MANY, "b": MANY},
        train=(
            "How many of {name}'s {a} {objects} are left after {other} takes {b}?",
            "A rope is {a} metres long. {name} cuts off {b} metres. How many metres long is the rest of the rope?",
            "The hall has {a} seats, and {b} of them are taken. Find the number of free seats.",
            "{name} brought {a} {objects} to the {place} and gave {b} to {other}. How many does {name} still have?",
            "A novel has {a} pages. {name} has already read {b} of them. How many pages has {name} still to read?",
            "There were {a} roses in the garden until {name} cut {b} for a party. How many roses were not cut?",
            "Of the {a} {objects} that {name} had on {day}, {b} got lost. How many {objects} remain?",
            "{name} starts {day} with {a} {objects} and {loses} {b}. How many are there at the end of the day?",
        ),
        validation=(
            "The {place} has {a} {objects} on {day}. During the day {b} are sold. How many {objects} has it left?",
            "In the kitchen there are {a} eggs, and the cook uses {b} for pancakes. What is the number of unused eggs?",
            "A ferry reaches the island with {a} passengers on board, and {b} of them get off. How many stay on board?",
        ),
        test=(
            "A shop orders {a} {objects}, but {b} of them never arrive. How many {objects} does the shop receive?",
            "{name} has {a} {objects} and {loses} {b} of them. How many {objects} are left?",
            "A {container} holds {a} {objects}. {name} takes out {b}. How many {objects} remain in the {container}?",
        ),
    ),
    Story(
        1,
        "(a-b)",
        {"a": MANY, "b": MANY},
        train=(
            "{name} has read {a} pages and {other} only {b}. What is the difference between the two?",
            "On {day} {a} people visited the {place}, and the next day {b} did. "
            "How many fewer people came on the second day?",
            "The old tower has {a} steps and the new one has {b}. How many more steps does the old tower have?",
            "{name} has {a} {objects} and {other} has {b}. How many more {objects} does {name} have than {other}?",
            "{name} needs {a} {objects} and has only {b}. How many more {objects} does {name} need?",
            "In a library {a} novels and {b} comics are on loan. Find the difference between these two numbers.",
            "A cake takes {a} grams of flour, but {name} finds only {b} grams in the kitchen. "
            "How many grams are missing?",
            "A shop orders {a} {objects} and {b} {things}. How many more {objects} than {things} does it order?",
        ),
        validation=(
            "{name} {gains} {a} {objects} while {other} {gains} {b}. How many more did {name} get than {other}?",
            "There are {a} {objects} and {b} {things} on a table. By how many do the {objects} outnumber the {things}?",
            "{name} runs {a} metres, and {other} runs {b} metres. "
            "How many metres farther does {name} run than {other}?",
        ),
        test=(
            "The {place} sold {a} {objects} and {b} {things}. How many fewer {things} than {objects} were sold?",
            "By how many points does {name} beat {other} if {name} scores {a} and {other} scores {b}?",
            "The trip takes {a} minutes by bus and only {b} minutes by train. How many minutes does the train save?",
        ),
    ),
    Story(
        1,
        "(a*b)",
        {"a": FEW, "b": SOME},
        train=(
            "For {a} days {name} {gains} {b} {objects} every day. How many {objects} is that altogether?",
            "{name} fills {a} {containers}, putting {b} {objects} into every one. How many {objects} are used?",
            "At the {place} {a} children carry {b} {objects} each. How many {objects} do the children carry in all?",
            "On a school trip {a} buses carry {b} children each. Find the total number of children on the buses.",
            "{name} runs {a} laps of {b} metres each at the sports ground. How many metres does {name} run?",
            "{name} has {a} {containers} with {b} {objects} in each. How many {objects} does {name} have?",
            "On {day} {name} buys {a} bus tickets and pays {b} coins for each. "
            "How many coins do the tickets cost in total?",
            "A garden has {a} flower beds, and {b} tulips grow in each bed. "
            "What is the number of tulips in the garden?",
        ),
        validation=(
            "The theatre has {a} rows of {b} seats. How many people can sit down there at most?",
            "How many {objects} do {a} {containers} hold if there is room for {b} in each {container}?",
            "A shop orders {a} {containers}, every one with {b} {objects} inside. How many {objects} does it order?",
        ),
        test=(
            "A library buys {a} new bookcases, each with room for {b} books. How many books fit into them?",
            "The {place} has {a} {containers}. Each {container} holds {b} {objects}. How many {objects} is that?",
            "On each of {a} evenings {name} reads {b} pages. Work out how many pages {name} reads altogether.",
        ),
    ),
    Story(
        1,
        "(a/b)",
        {"a": MANY, "b": (3, 15)},
        train=(
            "{name} has {a} {objects} and splits them equally between {b} children. How many does each child receive?",
            "A ribbon of {a} centimetres is cut into {b} equal pieces. How many centimetres long is each piece?",
            "A library spreads {a} books equally over {b} shelves. Find the number of books on each shelf.",
            "The cook has {a} eggs. If every cake takes {b} eggs, how many cakes can be baked?",
            "How many tables are needed to seat {a} guests if {b} guests sit at each table?",
            "At the {place} {a} {objects} stand on {b} tables, equally many on each. "
            "How many {objects} stand on one table?",
            "{name} plants {a} bulbs in {b} flower beds, equally many in every bed. "
            "What is the number of bulbs in one bed?",
            "On a bicycle trip {name} rides {a} kilometres in {b} days, equally far every day. "
            "Work out how many kilometres that is per day.",
        ),
        validation=(
            "There are {a} {objects} in {b} equal rows. How many {objects} are in each row?",
            "{a} {objects} are divided evenly over {b} {containers}. How many {objects} does each one hold?",
            "For a tournament {a} players form teams of {b}. How many teams take part?",
        ),
        test=(
            "A shop orders {a} {objects}. They arrive in {b} {containers}, the same number in each. "
            "How many {objects} does one {container} hold?",
            "{name} puts {a} {objects} into {containers} of {b} each. How many {containers} does {name} fill?",
            "{name} shares {a} {objects} equally among {b} friends. How many does each friend get?",
        ),
    ),
    Story(
        1,
        "(b-a)",
        {"a": MANY, "b": MANY},
        train=(
            "{name} owned {a} {objects} before going to the {place} and {b} afterwards. How many did {name} get there?",
            "A shop has {a} {objects} and orders some more to have {b} in all. How many {objects} does it order?",
            "How many points does {name}, who has scored {a} so far, still need to reach a score of {b}?",
            "On {day} {name} had {a} {objects}, the next day {b}. How many {objects} were added in between?",
            "A {container} held {a} {objects}. {name} added some and now it holds {b}. How many did {name} add?",
            "The library had {a} visitors last month and {b} this month. By how many has the number of visitors grown?",
            "So far {a} seats have been sold in a hall that has {b}. What is the number of unsold seats?",
            "By lunchtime {name} has read {a} pages of a book that has {b} pages. How many pages remain?",
        ),
        validation=(
            "A train set off with {a} passengers. At the first stop nobody got off, and then there were {b} on board. "
            "How many got on?",
            "{name} walks {a} metres to the {place}, and {other} walks {b} metres. "
            "How many more metres does {other} walk than {name}?",
            "{name} had {a} {objects}. After {other} gave {name} some more there were {b}. How many did {other} give?",
        ),
        test=(
            "There were {a} roses in the garden. Since {name} planted some more, there are {b}. "
            "Find the number of roses that {name} planted.",
            "{name} has {a} {objects} and wants to have {b}. How many more must {name} collect?",
            "A sack weighed {a} grams. With {name}'s {objects} in it, it weighs {b} grams. "
            "How many grams do the {objects} weigh?",
        ),
    ),
)
