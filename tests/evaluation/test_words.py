"""Words in any script: equal texts score 1, texts without a common word 0, and English scores stay."""

import unicodedata

import pytest

from lora_hf.evaluation.rouge import rouge_per_pair, score_dialogues
from lora_hf.evaluation.words import (
    ENGLISH,
    UNICODE,
    RougeTokenizer,
    choose_tokenizer,
    unicode_words,
)
from lora_hf.language_codes import SNOWBALL

# Two sentences in each language that have no word, or where words are characters no character, in common.
SENTENCES = {
    "am": ("አና ነገ ትመጣለች።", "ልጆቹ ኳስ ይጫወታሉ።"),
    "ar": ("تصل آنا غداً بالقطار.", "يشرب الأطفال الحليب البارد."),
    "az": ("Anna sabah qatarla gəlir.", "Uşaqlar soyuq süd içirlər."),
    "be": ("Ганна прыязджае заўтра цягніком.", "Дзеці п'юць халоднае малако."),
    "bg": ("Анна пристига утре с влака.", "Децата пият студено мляко."),
    "bn": ("আনা আগামীকাল ট্রেনে আসবে।", "শিশুরা ঠান্ডা দুধ খায়।"),
    "ca": ("L'Anna arribarà demà amb tren.", "Els nens beuen llet freda."),
    "cs": ("Anna přijede zítra vlakem.", "Děti pijí studené mléko."),
    "da": ("Anna kommer i morgen på cykel.", "Børnene drikker kold mælk."),
    "de": ("Anna kommt übermorgen mit dem Zug.", "Die Kinder trinken kühle Milch."),
    "el": ("Η Άννα έρχεται αύριο με τρένο.", "Τα παιδιά πίνουν κρύο γάλα."),
    "en": ("Anna arrives tomorrow by train.", "The children drink cold milk."),
    "es": ("Él está aquí mañana.", "Los niños beben leche fría."),
    "et": ("Anna tuleb homme öösel rongiga.", "Lapsed joovad külma piima."),
    "fa": ("آنا فردا با قطار می‌آید.", "کودکان شیر سرد دوست دارند."),
    "fi": ("Anna tulee huomenna junalla.", "Lapset juovat kylmää maitoa."),
    "fr": ("Léa arrivera à midi.", "Les élèves boivent du thé."),
    "gu": ("અન્ના કાલે ટ્રેનથી આવશે.", "બાળકો ઠંડું દૂધ પીવે છે."),
    "he": ("אנה מגיעה מחר ברכבת.", "הילדים שותים חלב קר."),
    "hi": ("आना कल रेलगाड़ी से आएगी।", "बच्चे ठंडा दूध पीते हैं।"),
    "hu": ("Anna holnap vonattal érkezik.", "A gyerekek hideg tejet isznak."),
    "hy": ("Աննան վաղը գնացքով կգա։", "Երեխաները սառը կաթ են խմում։"),
    "id": ("Anna datang besok naik kereta.", "Anak-anak minum susu dingin."),
    "it": ("Anna partirà più tardi.", "I bambini bevono latte freddo."),
    "ja": ("明日は雨です。", "彼らがお茶を飲んだ。"),
    "ka": ("ანა ხვალ მატარებლით ჩამოვა.", "ბავშვები ცივ რძეს სვამენ."),
    "kk": ("Анна ертең пойызбен келеді.", "Балалар салқын сүт ішеді."),
    "km": ("ខ្ញុំ", "ទៅផ្សារ"),
    "ko": ("안나는 내일 기차로 온다.", "아이들이 차가운 우유를 마신다."),
    "lt": ("Ona atvyks rytoj traukiniu.", "Vaikai geria šaltą pieną."),
    "ml": ("അന്ന നാളെ തീവണ്ടിയിൽ വരും.", "കുട്ടികൾ തണുത്ത പാൽ കുടിക്കുന്നു."),
    "mr": ("आना उद्या रेल्वेने येईल.", "मुले थंड दूध पितात."),
    "my": ("ဖြူ", "သွား"),
    "nl": ("Anna arriveert één dag later.", "De kinderen drinken koude melk."),
    "pl": ("Anna przyjedzie jutro pociągiem.", "Dzieci piją zimne mleko."),
    "pt": ("Ana chegará amanhã.", "As crianças bebem leite frio."),
    "ro": ("Ana sosește mâine dimineață.", "Copiii beau lapte rece."),
    "ru": ("Анна приедет завтра поездом.", "Дети пьют холодное молоко."),
    "sw": ("Anna atafika kesho kwa treni.", "Watoto wanakunywa maziwa baridi."),
    "ta": ("அன்னா நாளை ரயிலில் வருவாள்.", "குழந்தைகள் குளிர்ந்த பால் குடிக்கிறார்கள்."),
    "th": ("ฝนตก", "หมาดี"),
    "tr": ("Anna yarın trenle geliyor.", "Çocuklar soğuk süt içiyor."),
    "uk": ("Ганна приїде завтра поїздом.", "Діти п'ють холодне молоко."),
    "ur": ("انا کل ریل گاڑی سے آئے گی۔", "بچے ٹھنڈا دودھ پیتے ہیں۔"),
    "vi": ("Ngày mai An đi tàu hỏa.", "Trẻ con uống sữa lạnh."),
    "zh": ("安娜明天坐火车来。", "孩子们喝牛奶。"),
}


@pytest.mark.parametrize("language", SENTENCES)
def test_equal_texts_score_one_and_texts_without_a_common_word_zero(language: str) -> None:
    one, other = SENTENCES[language]
    for known in (None, language):
        scores = score_dialogues([one, one], [[one], [other]], known)
        assert scores.by_reference["rouge1"] == scores.by_reference["rougeL"] == [[1.0], [0.0]]
        assert scores.by_reference["rougeLsum"] == [[1.0], [0.0]]


def test_a_word_more_or_less_counts_as_one_word() -> None:
    assert rouge_per_pair(["Анна приедет завтра"], ["Анна приедет"])["rouge1"] == pytest.approx([0.8])
    assert rouge_per_pair(["明日は雨"], ["明日は雪"])["rouge1"] == [0.75]


def test_letters_with_marks_are_not_other_letters() -> None:
    assert rouge_per_pair(["l est aqu"], ["él está aquí"])["rouge1"] == [0.0]
    assert rouge_per_pair(["ÉL ESTÁ"], ["él está"])["rouge1"] == [1.0]  # decomposed, and case
    assert rouge_per_pair(["Ｔｏｋｙｏ 東京"], ["tokyo 東京"])["rouge1"] == [1.0]
    assert rouge_per_pair(["die STRASSE führt"], ["die Straße führt"])["rouge1"] == [1.0]


@pytest.mark.parametrize(
    ("made", "true", "f1"),
    [
        ("él está aquí", "l est aqu", 0.0),
        ("hello я не знаю что это такое", "hello", 0.25),
        ("José walks", "José is walking", 0.8),  # both texts by Unicode's words, with Porter's stems
        ("He sang in Łódź", "He sang in d", 0.75),
        ("١٢ ٣", "١٢ ٣", 1.0),
        ("café", "cafe\u0301", 1.0),  # composed and decomposed
        ("Ọjọ́ àìkú wá", unicodedata.normalize("NFD", "Ọjọ́ àìkú wá"), 1.0),
        (
            "She met Zoe\u0308 at the station today after lunch",
            "She met Zoë at the station today after lunch",
            1.0,
        ),
    ],
)
def test_letters_of_an_output_that_english_words_lack_are_counted(made: str, true: str, f1: float) -> None:
    english = ["They talk about lunch and leave for the station together. " * 9]
    scores = score_dialogues([made, *english], [[true], *([text] for text in english)])
    assert scores.by_reference["rouge1"] == [pytest.approx([f1]), [1.0]]
    if true.isascii() or "\u0301" in true:  # among English references and alone
        assert score_dialogues([made], [[true]]).by_reference["rouge1"][0] == pytest.approx([f1])


def test_a_number_in_common_is_one_word_of_many() -> None:
    wrong, right = "오늘은 3시에 비가 온다 3", "내일 오후 회의는 3 층에서 한다"
    assert 0 < rouge_per_pair([wrong], [right])["rouge1"][0] < 0.4


def test_references_choose_the_tokenizer_and_a_language_chooses_the_stemmer() -> None:
    assert choose_tokenizer(["He met José at noon. " + "They talked about lunch. " * 9]).name == ENGLISH
    assert choose_tokenizer(["Über die Brücke gehen"]) == RougeTokenizer(UNICODE)
    assert choose_tokenizer([]).name == choose_tokenizer(["123"]).name == ENGLISH
    for code in ("de", "de_DE", "deu_Latn", "__deu__", "DE", "German", "ger"):
        assert choose_tokenizer(["plain letters"], code) == RougeTokenizer(UNICODE, "german")
    assert choose_tokenizer(["x"], "en_XX") == choose_tokenizer(["x"], "eng_Latn") == RougeTokenizer(ENGLISH)
    for code in (None, "en", "eng_Latn", "en-US", "English"):
        assert choose_tokenizer(["plain letters"], code) == RougeTokenizer(ENGLISH)
    assert choose_tokenizer(["él está aquí"], "en") == RougeTokenizer(
        UNICODE, "Porter"
    )  # still English stems
    assert choose_tokenizer(["x"], "id_ID") == RougeTokenizer(UNICODE)
    words = RougeTokenizer(UNICODE, "german").tokenize("Die Häuser stehen. Das Haus steht.")
    assert words[1] == words[4] == "haus"


@pytest.mark.parametrize("stemmer", SNOWBALL)
def test_each_stemmer_is_there(stemmer: str) -> None:
    assert RougeTokenizer(UNICODE, stemmer).tokenize("Anna 1234 Москва") != []


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            "我明天去北京。你呢？他说：“好。”然后走了。",
            ["我明天去北京。", "你呢？", "他说：“好。”", "然后走了。"],
        ),
        ("मैं जाऊँगा। तुम?", ["मैं जाऊँगा।", "तुम?"]),
        ("Το ξέρεις; Ναι. Πάμε", ["Το ξέρεις;", "Ναι.", "Πάμε"]),
        ("هل تعرف؟ نعم۔ لا", ["هل تعرف؟", "نعم۔", "لا"]),
        ("Привет. Как дела?", ["Привет.", "Как дела?"]),
    ],
)
def test_sentences_end_by_the_marks_of_their_script(text: str, sentences: list[str]) -> None:
    assert RougeTokenizer(UNICODE).split_sentences(text).split("\n") == sentences
    assert "".join(RougeTokenizer(UNICODE).split_sentences(text).split()) == "".join(text.split())


def test_the_order_of_sentences_counts_in_rouge_l_alone() -> None:
    scores = rouge_per_pair(["你来。我走。"], ["我走。你来。"])
    assert scores["rougeLsum"] == [1.0] and scores["rougeL"] == [0.5]


def test_words_are_those_of_uax_29() -> None:
    assert unicode_words("Can't stop: 3.5 km, l'eau — naïve!") == [
        "can't",
        "stop",
        "3.5",
        "km",
        "l'eau",
        "naïve",
    ]
