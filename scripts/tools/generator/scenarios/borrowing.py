"""a asks to borrow something from b."""

from scripts.tools.generator.scenario import Ending, Scenario, question, turn

ASK_LOAN = turn(
    "a",
    train="""
    [Can|May] I borrow your {thing}?
    Could you lend me your {thing}?
    I need your {thing} for [a few days|a while].
    Is your {thing} free? I would like to borrow it.
    Would you [give|lend] me your {thing} for a while?
    """,
    validation="""
    Do you [use|need] your {thing}? I could do with it.
    """,
    test="""
    I would like to have your {thing} for [some days|some time].
    Do you need your {thing}? [Can|May] I have it for a while?
    """,
)
WHAT_FOR = turn(
    "b",
    train="""
    [What for?|Why do you need it?]
    [Hmm|Well], what do you want to do with it?
    Is yours [broken|gone]?
    """,
    validation="""
    [For|To] what end?
    """,
    test="""
    [Oh|Well], what do you need it for?
    What do you want it for?
    """,
)
REASON = turn(
    "a",
    train="""
    I [want|need] it at {place}.
    I am going to {place} [with it|tomorrow].
    They [want to see|ask for] it at {place}.
    It is for [some work|a visit] at {place}.
    """,
    validation="""
    Because {place} [has none|is waiting for it].
    """,
    test="""
    I have to [take|bring] it to {place}.
    It is for {place}, [you know|my friend].
    """,
)
LEND = turn(
    "b",
    train="""
    [All right|Fine], but I need it back by {day}.
    You can [have|keep] it until {day}.
    Take it, but [return it|bring it back] by {day}.
    [Yes|Of course], if I get it back on {day}.
    """,
    validation="""
    [Sure|Okay], only {day} I use it myself.
    """,
    test="""
    Yes, take it. [I want|I need] it here again on {day}.
    [Yes|Good], but on {day} you bring it back.
    """,
)
GIVEN_AWAY = turn(
    "b",
    train="""
    [Sorry|Oh no], {person} has it.
    I [lent|gave] it to {person} last week.
    {person} borrowed it and [has not returned it|still needs it].
    You must ask {person}, who has it now.
    """,
    validation="""
    It is [lying|still] at {person}'s house.
    """,
    test="""
    I am afraid it is with {person} [now|this week].
    No, {person} [has|needs] it this week.
    """,
)

BORROWING = Scenario(
    topic="borrowing",
    opening=(ASK_LOAN, WHAT_FOR, REASON),
    endings=(
        Ending(
            (LEND,),
            "{b} lends {a} the {thing} for {place} until {day}.",
            (
                question("Who lends whom? / Who lends it?", "{b} lends {a}"),
                question("Until when? / When must it be back?", "until {day}"),
                question("What does {b} do? / Does {b} lend it?", "{b} lends {a} the {thing}."),
            ),
        ),
        Ending(
            (GIVEN_AWAY,),
            "{a} needs the {thing} of {b} for {place}, but {person} has it.",
            (
                question("Who has it? / Where is it now?", "{person} has it."),
                question("Why does {b} not lend it? / What is the trouble?", "but {person} has it"),
            ),
        ),
    ),
    questions=(
        question("What does {a} need? / What does {a} want to borrow?", "{a} needs the {thing} of {b}."),
        question("What is it for? / Where is it needed?", "for {place}"),
        question("What thing do they talk about?", "the {thing}"),
    ),
)
