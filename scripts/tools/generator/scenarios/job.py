"""a was offered a job and talks to b about it."""

from scripts.tools.generator.scenario import Ending, Scenario, question, turn

NEWS = turn(
    "a",
    train="""
    I [have been|was] offered a job as {job} at {place}.
    {place} wants me as {job}.
    They [need|are looking for] {job} at {place} and asked me.
    [Guess what|You know what], I could become {job} at {place}.
    I had a talk at {place} about work as {job}.
    """,
    validation="""
    They [would hire|might employ] me at {place} as {job}.
    """,
    test="""
    At {place} they [want|asked] me to work as {job}.
    There is a job for me as {job}, [you know|and it is] at {place}.
    """,
)
ASK_PAY = turn(
    "b",
    train="""
    What do they [pay|offer]?
    [Great|Wow]! Is the pay good?
    How much [would|will] you earn?
    And the money?
    """,
    validation="""
    [Congratulations|Oh]. What about wages?
    """,
    test="""
    [Nice|Good news]! How much do they pay?
    How much [money|pay] is it?
    """,
)
PAY = turn(
    "a",
    train="""
    They pay ${price} a day.
    ${price} a day[, not bad|, I think].
    I would [get|earn] ${price} each day.
    [It is|I was told] ${price} per day.
    """,
    validation="""
    [Daily|Each day] it comes to ${price}.
    """,
    test="""
    I [will|would] have ${price} for a day.
    For each day they give me ${price}.
    """,
)
WHEN_START = turn(
    "b",
    train="""
    Will you [take|accept] it?
    [And|So], what did you say?
    Have you [decided|said yes]?
    """,
    validation="""
    Are you [willing|happy]?
    """,
    test="""
    What have you decided?
    Do you want [it|the job]?
    """,
)
TAKE = turn(
    "a",
    train="""
    Yes, I [start|begin] on {day}.
    [Of course|Gladly]. My first day is {day}.
    I said yes. From {day} I [work there|am there].
    I have [signed|accepted]. I begin on {day}.
    """,
    validation="""
    [Sure|Certainly], {day} will see me there.
    """,
    test="""
    I took it. They [want|need] me there on {day}.
    Yes, and on {day} I will [begin|start].
    """,
)
REFUSE = turn(
    "a",
    train="""
    No, because of {drawback}.
    I said no. I do not like {drawback}.
    [Sadly|Well], {drawback} would be too much for me.
    I turned it down, {drawback} [put me off|was the reason].
    """,
    validation="""
    Not with {drawback}, I [fear|guess].
    """,
    test="""
    I do not want it. It is {drawback} [that I do not like|you know].
    No, I do not like it because of {drawback}.
    """,
)

JOB = Scenario(
    topic="job",
    opening=(NEWS, ASK_PAY, PAY, WHEN_START),
    endings=(
        Ending(
            (TAKE,),
            "{a} will work as {job} at {place} for ${price} a day from {day}.",
            (
                question("What will {a} do? / As what will {a} work?", "{a} will work as {job}."),
                question("When does {a} start? / From what day?", "from {day}"),
            ),
        ),
        Ending(
            (REFUSE,),
            "{a} will not work as {job} at {place} for ${price} a day because of {drawback}.",
            (
                question("Does {a} take the job? / What did {a} decide?", "{a} will not."),
                question("Why does {a} not take it? / What is the drawback?", "because of {drawback}"),
            ),
        ),
    ),
    questions=(
        question("What is the job? / What work is it?", "as {job}"),
        question("Where is the job? / What is the place?", "at {place}"),
        question("What is the pay? / How much is it a day?", "for ${price} a day"),
        question("What job is it and where?", "as {job} at {place}"),
    ),
)
