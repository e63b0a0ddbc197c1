"""No personal data leaves for a remote teacher, and what comes back is the user's own again."""

import json
import re
import socket
import sys
from pathlib import Path

import pytest

from cloud import privacy
from cloud.augment import AugmentConfig, augment, dry_run
from cloud.privacy import Scrubber
from cloud.profiles import Consent, Item, Profile, read_rows, write_profile
from cloud.service.doctor import examine
from cloud.service.settings import Settings
from cloud.tasks import custom_task
from cloud.teachers import open_teacher
from protos.errors import InputError

MAILS = custom_task("mails", "generation", "Subject for this mail of ann@example.com: {input}", ())
TEXTS = [
    "Write to ann@example.com or call +43 1 58858 1234 about the new boat.",
    "My card 4111 1111 1111 1111 and account AT61 1904 3002 3457 3201 are for the boat club.",
    "The boat is at 10.11.12.13, see https://boats.example.org/ann?id=7 or ann@example.com, Ann.",
    "电话 13800138000 或者 wang@qq.com 关于新船的事情。",
    "Ring me at 0664 1234567 when the boat has come, or mail bob@example.net about it.",
    "The new boat is blue, and the old boat of 1998 was sold for 2,500 to the club.",
]
SECRETS = (
    "ann@example.com", "58858", "4111", "1904 3002", "10.11.12.13", "boats.example.org",
    "13800138000", "wang@qq.com", "1234567", "bob@example.net",
)  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a name would be a request that tells somebody of it."""
    real = socket.getaddrinfo

    def local_only(host: str, *args, **kwargs):
        assert host in ("127.0.0.1", "localhost"), f"it asked for {host}"
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", local_only)


def test_values_are_found_replaced_everywhere_alike_and_put_back() -> None:
    scrubber = Scrubber(TEXTS)
    scrubbed = [scrubber.scrub(text) for text in TEXTS]
    for secret in SECRETS:
        assert not any(secret in text for text in scrubbed), secret
    assert "The new boat is blue, and the old boat of 1998 was sold for 2,500" in scrubbed[5]
    assert scrubbed[0].startswith("Write to <EMAIL_ADDRESS_1> or call <PHONE_NUMBER_2> about")
    assert "<EMAIL_ADDRESS_1>, Ann." in scrubbed[2], "the same value has the same placeholder"
    assert [scrubber.restore(text) for text in scrubbed] == TEXTS
    again = Scrubber(TEXTS)
    assert [again.scrub(text) for text in TEXTS] == scrubbed


def test_what_a_later_text_gives_away_is_taken_out_of_earlier_ones() -> None:
    number = "536-90-4399"
    hidden = f"The file is called x{number}y at the club."
    assert Scrubber([hidden]).scrub(hidden) == hidden, "it stands within a word"
    assert number not in Scrubber([hidden, f"My number is {number}."]).scrub(hidden)


def test_placeholders_in_the_users_own_text_come_back_as_they_were() -> None:
    texts = ["The template says <EMAIL_ADDRESS_1> here.", "My address is eve@example.com."]
    scrubber = Scrubber(texts)
    assert [scrubber.restore(scrubber.scrub(text)) for text in texts] == texts
    assert scrubber.scrub(texts[0]) != texts[0]


def test_personal_data_of_others_and_unknown_placeholders_are_foreign() -> None:
    scrubber = Scrubber(TEXTS)
    assert not scrubber.is_foreign("Write to ann@example.com, it is fine.")
    assert scrubber.is_foreign("Write to zoe@example.com, it is not.")
    assert scrubber.is_foreign("Write to <EMAIL_ADDRESS_99>, whoever that is.")
    assert not scrubber.is_foreign("See main.py and the 300 visitors of 2024-05-01.")


@pytest.mark.parametrize(
    "mangled",
    [
        "[EMAIL_ADDRESS_1]", "EMAIL_ADDRESS_1", "<EMAIL_ADDRESS>", "EMAIL_ADDRESS",
        "&lt;EMAIL_ADDRESS_1&gt;", r"\<EMAIL\_ADDRESS\_1\>", "<PHONE_NUMBER _2>", "[URL_3]",
        "<URL>", "[URL]", "&lt;URL&gt;", "新船<IBAN_CODE>的",
    ],
)  # fmt: skip
def test_mangled_placeholders_are_foreign_unless_the_user_writes_so(mangled: str) -> None:
    text = f"Write to {mangled} before the boat leaves."
    assert Scrubber(TEXTS).is_foreign(Scrubber(TEXTS).restore(text))
    assert not Scrubber([*TEXTS, f"Our form says {mangled} here."]).is_foreign(text)


@pytest.mark.parametrize(
    "text", ["Paste the URL here.", "MY_EMAIL_ADDRESS_FIELD = 1", "email_address", "Crypto (URL)"]
)
def test_words_that_are_no_placeholders_are_not_foreign(text: str) -> None:
    assert not Scrubber(TEXTS).is_foreign(text)


@pytest.mark.parametrize(
    "text",
    [
        "Konto 12345678901234567890",
        "My card is 6304000000000000000.",
        "Order 1234567890123456 is late",
        "acct 4111 1111 1111 1112 of the club",
        "since 2019 4111 1111 1111 1111",
        "on 2024-06-07 0664 1234567 rang",
        "06 12 34 56 78",
        "06.12.34.56.78",
        "15900159000",
        "212.5550187",
        "Call 212-555-0187",
    ],
)
def test_numbers_of_any_length_are_taken_out_whole_and_foreign_to_others(text: str) -> None:
    scrubber = Scrubber([text])
    scrubbed = scrubber.scrub(text)
    assert not re.search(r"\d", re.sub(r"<[A-Z_]+_\d+>", "", scrubbed)), scrubbed
    assert scrubber.restore(scrubbed) == text
    assert not scrubber.is_foreign(text)
    assert Scrubber(TEXTS).is_foreign(text)


@pytest.mark.parametrize(
    "text",
    [
        "The train of 2024-06-07 10:15 was late.",
        "The train of 07.06.2024 10:15 was late.",
        "From 2024-06-07 10:15 2024-06-08 11:20 it was closed.",
        "At 07.06.2024 10.15 it was open.",
        "The error is 0.0001234567 at most.",
        "See 10.1145/3292500.3330701, on boats.",
        "ISBN 978-3-16-148410-0",
        "ISBN 9783161484100",
        "ISBN 0-306-40615-2",
        "As in arXiv 2304.11406, we sail.",
        "In 2019 2020 2021 and in (2022) 2023 (2024) we sailed.",
        "Tickets are 12.50 13.40 15.20 this year.",
    ],
)
def test_dates_years_prices_and_publications_that_are_new_are_nobodys(text: str) -> None:
    """Each is taken out of what is sent all the same: it might be somebody's number."""
    assert not Scrubber(TEXTS).is_foreign(text)
    assert Scrubber([text]).count > 0


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("My NI number is AB 12 34 56 C.", "My NI number is <UK_NINO_1>."),
        ("Licence MORGA657054SM9IJ of mine", "Licence <UK_DRIVING_LICENCE_1> of mine"),
        ("My PAN is ABCPE1234F.", "My PAN is <IN_PAN_1>."),
        ("codice fiscale RSSMRA85T10A562S", "codice fiscale <IT_FISCAL_CODE_1>"),
        ("mi DNI 12345678Z", "mi DNI <ES_NIF_1>"),
        ("NIE X1234567L", "NIE <ES_NIE_1>"),
        ("hetu 131052-308T", "hetu <FI_PERSONAL_IDENTITY_CODE_1>"),
        ("NRIC S1234567D", "NRIC <SG_NRIC_FIN_1>"),
        ("Medicare 1EG4-TE5-MK73", "Medicare <US_MBI_1>"),
        ("Rente 15070649C103", "Rente <DE_SOCIAL_SECURITY_1>"),
        ("mac 00:1A:2B:3C:4D:5E", "mac <MAC_ADDRESS_1>"),
        ("mac 001A.2B3C.4D5E", "mac <MAC_ADDRESS_1>"),
        ("My passport number is AB1234567.", "My passport number is <PASSPORT_1>."),
        ("Reisepass: C01X00T47", "Reisepass: <PASSPORT_1>"),
        ("pasaporte AAA123456", "pasaporte <PASSPORT_1>"),
        ("护照号码 and 护照 E12345678", "护照号码 and 护照 <PASSPORT_1>"),
        ("Call me at 555-0187 now.", "Call me at <PHONE_NUMBER_1> now."),
        ("Tel.: 555 01 87", "Tel.: <PHONE_NUMBER_1>"),
        ("电话 5550187", "电话 <PHONE_NUMBER_1>"),
    ],
)
def test_numbers_of_documents_of_devices_and_short_ones_are_taken_out(text, scrubbed) -> None:
    scrubber = Scrubber([text])
    assert scrubber.scrub(text) == scrubbed
    assert scrubber.restore(scrubbed) == text
    assert Scrubber(TEXTS).is_foreign(text)


@pytest.mark.parametrize(
    "text",
    [
        "Two of 555-0187 pieces", "Pages 123-1456 of 5550187", "The passport of 2024 is red.",
        "Call 2,500 people in 2020 or 300 4000-word authors.", "We call f(100, 2000) 1,234 times.",
        "The bird AB1234567 flew.", "sha 1a2b3c4d, commit 9f8e7d6", "Room 12345678 A at 12:30:20",
        "mi DNI 12345678A has a wrong letter", "codice RSSMRA85T10A562T has one too",
        "On 2024-06-07 we had $12.50 in 1998.", "def f(x): return x[0:10:20]",
    ],
)  # fmt: skip
def test_ordinary_numbers_stay(text: str) -> None:
    scrubber = Scrubber([text])
    assert scrubber.scrub(text) == text
    assert not Scrubber(TEXTS).is_foreign(text)


def test_very_long_rows_of_numbers_are_judged_without_trying_every_reading() -> None:
    """2 ** 20,000 readings of the first: one year or a pair of them, again and again."""
    assert not privacy._is_nobodys("2019-2020-" * 20_000 + "1")
    assert not privacy._is_nobodys("1-" * 40_000)
    assert not privacy._is_nobodys("9" * 100_000)
    assert privacy._is_nobodys("12.50 " * 20_000)


@pytest.fixture
def profile(tmp_path: Path):
    items = [Item(str(n), text, f"About the boat {n}") for n, text in enumerate(TEXTS)]
    made = Profile(MAILS, "ann", "en", Consent(third_party=True), items, [])
    return write_profile(made, tmp_path / "profile")


def test_a_remote_teacher_sees_placeholders_and_the_dataset_has_the_values(
    tmp_path: Path, profile, chat
) -> None:
    wanted = [
        ("Please answer <EMAIL_ADDRESS_1> before the boat leaves on Sunday.", "About the sea 1"),
        ("Please answer zoe@example.com before the ferry leaves on Monday.", "About the sea 2"),
        ("Please answer <EMAIL_ADDRESS_77> before the train leaves at noon.", "About the sea 3"),
    ]
    lines = [json.dumps({"input": text, "output": output}) for text, output in wanted]
    chat.say = lambda message, number: "\n".join(lines)
    config = AugmentConfig(per_real=0.25, tries=3)
    sent = list(dry_run(profile, open_teacher(chat.spec, 1), config))
    assert chat.bodies == [], "a dry run sends nothing"
    dataset = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", config)
    assert [body["messages"] for body in chat.bodies[: len(sent)]] == sent
    for secret in SECRETS:
        assert not any(secret in message for message in chat.asked), secret
    rows = read_rows(dataset.file("train.jsonl"))
    assert [row["input"] for row in rows if row["origin"] == "synthetic"] == [
        "Please answer ann@example.com before the boat leaves on Sunday."
    ]
    assert [row["input"] for row in rows if row["origin"] == "real"] == TEXTS[:5]
    measured = dataset.manifest.measured
    assert measured["rejected"]["personal-data"] == 2
    assert measured["scrubbed"] == 10


def test_without_the_extra_nothing_is_sent_and_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile, chat
) -> None:
    privacy._finder.cache_clear()
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)  # as if it were not there
    with pytest.raises(InputError, match=r"pip install 'pocketune\[privacy\]'; --scrub off sends"):
        augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", AugmentConfig())
    assert chat.bodies == []


def test_the_doctor_says_whether_remote_teachers_can_be_used(monkeypatch, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, teachers={"big": "openai:http://localhost/v1#m"})
    found = {each.what: each for each in examine(settings)}
    assert (found["teachers"].level, found["teachers"].text.split(":")[0]) == ("ok", "big")
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    found = {each.what: each for each in examine(settings)}
    assert found["teachers"].level == "fail"
    assert "pocketune[privacy]" in found["teachers"].text
    assert "teachers" not in {each.what for each in examine(Settings(data_dir=tmp_path))}


def test_scrubbing_can_be_turned_off_and_on(tmp_path: Path, profile, chat) -> None:
    config = AugmentConfig(per_real=0.25, scrub="off")
    sent = json.dumps(list(dry_run(profile, open_teacher(chat.spec, 1), config)))
    assert "ann@example.com" in sent
    local = json.dumps(list(dry_run(profile, open_teacher("pocket", 1), AugmentConfig())))
    assert "ann@example.com" in local, "nothing leaves the machine"
    scrubbed = list(dry_run(profile, open_teacher("pocket", 1), AugmentConfig(scrub="on")))
    assert not any(secret in json.dumps(scrubbed, ensure_ascii=False) for secret in SECRETS)
