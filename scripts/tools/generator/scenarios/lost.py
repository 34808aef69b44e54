"""a has lost something; b has found it or suggests whom to ask."""

from scripts.tools.generator.scenario import Ending, Scenario, question, turn

LOSE = turn(
    "a",
    train="""
    I cannot find my {thing}.
    I have lost my {thing}. [Have you seen it?|Oh dear!]
    My {thing} is [gone|missing].
    [Help me|Please help], I am missing my {thing}.
    Where is my {thing}? I have looked [everywhere|all over the house].
    """,
    validation="""
    Somebody [took|must have taken] my {thing}.
    """,
    test="""
    [Have you seen|Do you have] my {thing}? It is not here.
    [Oh no|Oh dear], my {thing} is lost.
    """,
)
ASK_WHERE = turn(
    "b",
    train="""
    Where did you [see it last|have it last]?
    [Where have you been|Where were you] with it?
    [Think|Let us think]. Where did you leave it?
    """,
    validation="""
    In which place did you [use|need] it?
    """,
    test="""
    Where did you see it [today|yesterday]?
    [Oh|Well], where have you been today?
    """,
)
SAY_WHERE = turn(
    "a",
    train="""
    At {place}, I [think|believe].
    I had it at {place} [yesterday|last week].
    I was at {place} [with it|this morning].
    [Maybe|Perhaps] I left it at {place}.
    It must be at {place}.
    """,
    validation="""
    {place} is where I [took|pulled] it out.
    """,
    test="""
    I have been to {place} with it.
    I think it was with me at {place}.
    """,
)
FOUND = turn(
    "b",
    train="""
    [Good news|You are lucky], I have it. I will bring it on {day}.
    I found it there. You will [get it|have it back] on {day}.
    I [picked it up|took it home]. I can bring it to you on {day}.
    It is [here with me|on my table]. See you on {day}, I will bring it.
    """,
    validation="""
    It [lay|was lying] there, so I kept it. {day} is when I can return it.
    """,
    test="""
    I saw it there and took it. On {day} you will have it back.
    [Well|Oh], it is with me. I can come on {day} and bring it.
    """,
)
ASK_PERSON = turn(
    "b",
    train="""
    [Then|In that case] you should ask {person}.
    Ask {person}, who [works|cleans] there.
    {person} may [know more|have it].
    [Call|Phone] {person} about it.
    """,
    validation="""
    You [could|might] turn to {person}.
    """,
    test="""
    I would ask {person}, who [works|has been] there.
    You [can|should] see {person} about it.
    """,
)

LOST = Scenario(
    topic="lost thing",
    opening=(LOSE, ASK_WHERE, SAY_WHERE),
    endings=(
        Ending(
            (FOUND,),
            "{a} left the {thing} at {place}. {b} found it and will bring it on {day}.",
            (
                question("Who found it? / Where is it now?", "{b} found it."),
                question(
                    "When will {a} have it back? / When does {b} bring it?", "{b} will bring it on {day}."
                ),
            ),
        ),
        Ending(
            (ASK_PERSON,),
            "{a} left the {thing} at {place}. {b} tells {a} to ask {person}.",
            (
                question("Whom should {a} ask? / Who may know more?", "{person}"),
                question("What does {b} advise? / What does {b} tell {a}?", "{b} tells {a} to ask {person}."),
            ),
        ),
    ),
    questions=(
        question("What is lost? / What is missing?", "the {thing}"),
        question("Who lost what? / What did {a} leave?", "{a} left the {thing}."),
        question("Where was it left? / What is the place?", "at {place}"),
    ),
)
