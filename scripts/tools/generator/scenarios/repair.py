"""a asks b to repair a machine."""

from scripts.tools.generator.scenario import Ending, Scenario, question, turn

BROKEN = turn(
    "a",
    train="""
    My {machine} does not work [any more|since yesterday].
    [Can|Could] you repair my {machine}?
    There is [something wrong|a problem] with my {machine}.
    My {machine} is broken.
    My {machine} makes a [strange|terrible] noise.
    """,
    validation="""
    My {machine} gave up [this morning|last night].
    """,
    test="""
    [Oh dear|Oh no], my {machine} does not work. Can you help me?
    [Please|Could you] look at my {machine}, it is not good.
    """,
)
LOOK_AT = turn(
    "b",
    train="""
    I have looked at it. It [will cost|costs] ${price}.
    I can [repair it|make it work] for ${price}.
    That [is|would be] ${price} for the work.
    [A small thing|An old part], ${price} in all.
    """,
    validation="""
    My [charge|fee] for that is ${price}.
    """,
    test="""
    [Yes|Well], for ${price} I can do it.
    I think you have to pay ${price} for [that|it].
    """,
)
WHEN_READY = turn(
    "a",
    train="""
    When would it be [ready|done]?
    How long [does it take|will it take]?
    [And|So] when can I have it?
    """,
    validation="""
    Is that [quick|fast] work?
    """,
    test="""
    When do I get it [back|again]?
    On what day [is it|would it be] ready?
    """,
)
READY = turn(
    "b",
    train="""
    It will be ready on {day}.
    [By|On] {day}, if I [get|have] the parts.
    I can have it done by {day}.
    You can [fetch it|pick it up] on {day}.
    """,
    validation="""
    [Until|Before] {day} it is finished.
    """,
    test="""
    I [need|have] time until {day} for the work.
    Come on {day}, then it is [done|good again].
    """,
)
AGREE = turn(
    "a",
    train="""
    [Good|Fine], please do it.
    [All right|Agreed], go ahead.
    Yes, I [leave it here|will pay that].
    """,
    validation="""
    [Okay|Right], get started.
    """,
    test="""
    Yes, [please begin|do that].
    [Good|Fine], I will pay for it.
    """,
)
TOO_DEAR = turn(
    "a",
    train="""
    That is too [expensive|much money]. No, thank you.
    [Then|In that case] I will buy a new one.
    No, I do not [want to|like to] pay that.
    """,
    validation="""
    [Forget it|Never mind], I will throw it away.
    """,
    test="""
    No, I [want|need] a new one then.
    It is too much for me, [my friend|I am afraid].
    """,
)

REPAIR = Scenario(
    topic="repair",
    opening=(BROKEN, LOOK_AT, WHEN_READY, READY),
    endings=(
        Ending(
            (AGREE,),
            "{b} will repair the {machine} of {a} for ${price} by {day}.",
            (
                question("What will {b} do? / Will it be repaired?", "{b} will repair the {machine}."),
                question("Who repairs for whom?", "{b} will repair it for {a}."),
            ),
        ),
        Ending(
            (TOO_DEAR,),
            "{b} will not repair the {machine} of {a}, because ${price} is too much.",
            (
                question("What will {b} do? / Will it be repaired?", "{b} will not."),
                question("Why is it not repaired?", "because ${price} is too much"),
            ),
        ),
    ),
    questions=(
        question("What is broken? / What does not work?", "the {machine} of {a}"),
        question("What is the price? / What does {b} ask?", "for ${price}"),
        question("When is it ready? / By what day?", "by {day}"),
        question("Whose machine is it? / Who has a broken machine?", "{a}"),
    ),
)
