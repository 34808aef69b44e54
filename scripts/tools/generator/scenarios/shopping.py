"""a negotiates with b about the price of something."""

from scripts.tools.generator.scenario import Ending, Scenario, question, turn

LOOK = turn(
    "a",
    train="""
    I am looking for {goods}.
    [Do you have|Have you got] {goods}?
    I [would like|want] to buy {goods}.
    [Excuse me|Hello], I need {goods} for my [flat|room].
    How much is {goods} [here|in your shop]?
    """,
    validation="""
    Could you [show|sell] me {goods}?
    """,
    test="""
    [Can|May] I see {goods}? I want to buy one.
    My [mother|brother] wants {goods}. Do you have one?
    """,
)
ASK_PRICE = turn(
    "b",
    train="""
    [Yes|Of course], here is one for ${price}.
    This one [costs|is] ${price}.
    I can [give|sell] you this one for ${price}.
    The price is ${price}, [madam|my friend].
    We have a [fine|good] one. It costs ${price}.
    """,
    validation="""
    [Sure|Right here]. I ask ${price} for it.
    """,
    test="""
    [Look|Yes], this one is yours for ${price}.
    We have one, and the price is ${price}.
    """,
)
HAGGLE = turn(
    "a",
    train="""
    That is too much. Would you take ${price_2}?
    I [only have|can only pay] ${price_2}.
    [Hmm|Oh], how about ${price_2}?
    I will [give|pay] you ${price_2}.
    """,
    validation="""
    [Let us say|What about] ${price_2}?
    """,
    test="""
    I have [only|just] ${price_2} with me. Would that do?
    [Can|Could] you sell it for ${price_2}?
    """,
)
DEAL = turn(
    "b",
    train="""
    [All right|Very well], it is yours.
    [Fine|Good], you have a deal.
    Agreed. [Shall I wrap it?|Take it.]
    For you, yes.
    """,
    validation="""
    [Done|Okay], it belongs to you.
    """,
    test="""
    [Yes|Good], take it.
    You have a deal, [my friend|madam].
    """,
)
NO_DEAL = turn(
    "b",
    train="""
    No, I cannot go [below that|so low].
    [Sorry|I am afraid], that is not enough.
    Impossible. The price [stays|is fixed].
    That would be [a loss for me|too little].
    """,
    validation="""
    I [never|do not] bargain, sorry.
    """,
    test="""
    No, that is too [little|low] for me.
    [Sorry|No], I cannot sell it for that.
    """,
)

SHOPPING = Scenario(
    topic="shopping",
    opening=(LOOK, ASK_PRICE, HAGGLE),
    endings=(
        Ending(
            (DEAL,),
            "{a} buys {goods} from {b} for ${price_2} instead of ${price}.",
            (
                question("Who buys what? / What does {a} buy?", "{a} buys {goods}."),
                question("Who buys from whom? / Who sells it to {a}?", "{a} buys from {b}."),
                question("What does {a} pay in the end? / For how much is it sold?", "for ${price_2}"),
                question("What did it cost at first and in the end?", "${price_2} instead of ${price}"),
            ),
        ),
        Ending(
            (NO_DEAL,),
            "{a} wants to buy {goods} but does not, because {b} asks ${price} and {a} offers ${price_2}.",
            (
                question("Is it sold? / Does {a} buy it?", "{a} does not."),
                question("What does {a} want? / What would {a} like to buy?", "{a} wants to buy {goods}."),
                question("Why is it not sold?", "because {b} asks ${price}"),
            ),
        ),
    ),
    questions=(
        question("How much does {b} ask? / What is the first price?", "{b} asks ${price}."),
        question("How much does {a} offer? / What does {a} want to pay?", "{a} offers ${price_2}."),
        question("What is it about? / What thing do they talk about?", "{goods}"),
    ),
)
