"""What other guards speak: OpenAI's moderations, LiteLLM's guardrail, Alibaba's service."""

import asyncio
import json
import time
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.rules import DelayK
from serve.dialects.alibaba import Alibaba
from serve.dialects.litellm import LiteLLM, read_calls
from serve.dialects.remembered import Remembered, key_of
from serve.engine import Engine
from serve.requests import unavailable
from serve.sessions import Sessions
from tests.conftest import settings_of

TEXT = "The first line of it.\nThen a second one ends here, slowly."
STOP = settings_of(DelayK(1), 1e-6)
GUARDRAIL = "/beta/litellm_basic_guardrail_api"


@pytest.fixture()
def service(gateway):
    with gateway() as url:
        yield url


def post(url: str, path: str, body: object):
    return httpx2.post(url + path, json=body, timeout=30)


@pytest.mark.parametrize(
    ("sent", "count"),
    [(TEXT, 1), ([TEXT, "Two."], 2), ([{"type": "text", "text": TEXT}], 1), (["x"] * 20, 20)],
)
def test_moderations(service, monitor, sent, count):
    calm = post(service, "/v1/moderations", {"input": sent}).json()
    monitor.settings = STOP
    alarmed = post(service, "/v1/moderations", {"input": sent}).json()
    assert len(calm["results"]) == len(alarmed["results"]) == count
    for quiet, loud in zip(calm["results"], alarmed["results"], strict=True):
        assert not quiet["flagged"] and loud["flagged"] and loud["categories"]["harmful"]
        assert loud["category_scores"]["harmful"] == 1 > quiet["category_scores"]["harmful"]
        assert set(quiet["categories"]) == set(quiet["category_scores"]) and (
            quiet["categories"]["violence"] is False
        )


@pytest.mark.parametrize(
    "sent", [None, 3, [], [3], [{"type": "image_url", "image_url": {}}], ["x"] * 33]
)
def test_bad_moderations_name_the_field(service, sent):
    reply = post(service, "/v1/moderations", {"input": sent})
    assert reply.status_code == 400 and "'input'" in reply.json()["error"]["message"]


def guard(url: str, texts: list[str], kind: str = "response", call: str = "call-1", **more):
    body = {"input_type": kind, "litellm_call_id": call, "texts": texts} | more
    reply = post(url, GUARDRAIL, body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_litellm_is_told_how_much_to_hold_back(service):
    """As LiteLLM sends it in `incremental_diff`: the prompt, then all text again and again."""
    assert guard(service, ["Say it."], "request") == {"action": "NONE"}
    shown = 0
    for end in (3, 7, 8, 20, 40, len(TEXT)):
        reply = guard(service, [TEXT[:end]])
        assert reply["action"] == "NONE" and reply["texts"] == [TEXT[:end]]
        ready = end - reply["stream_holdback_chars"][0]
        assert shown <= ready < end  # the last word is not judged yet
        shown = ready
    assert guard(service, [TEXT])["stream_holdback_chars"] == [0]  # the same again: complete
    longer = guard(service, [TEXT + " It goes on."])  # it had not been
    assert longer["stream_holdback_chars"][0] > 0
    assert guard(service, [TEXT + " It goes on."])["stream_holdback_chars"] == [0]


def test_litellm_blocks(service, monitor):
    guard(service, ["Say it."], "request")
    assert guard(service, ["One two", "Three four"])["action"] == "NONE"
    monitor.settings = STOP
    reply = guard(service, ["One two", "Three four"], call="call-2")
    assert reply["action"] == "BLOCKED" and "choice 0" in reply["blocked_reason"]
    assert "One" not in json.dumps(reply)  # no text in it
    assert guard(service, [TEXT], call="")["action"] == "BLOCKED"


def test_litellms_whole_answers_are_judged_to_the_last_word(gateway, monitor):
    """They come once, and LiteLLM passes on whatever is not blocked; no place is kept for them."""

    def scores_of(text: str) -> list[float]:
        with monitor.open("Say it.") as stream:
            return [*stream.feed(text).scores, *stream.close().scores]

    texts = (TEXT[:end] for end in range(9, len(TEXT)))
    text = next(one for one in texts if max(scores := scores_of(one)) > max(scores[:-1]))
    with gateway(max_streams=1) as url:
        guard(url, ["Say it."], "request")
        monitor.settings = settings_of(DelayK(1), float(scores[-1]))
        assert guard(url, [text])["action"] == "BLOCKED"
        monitor.settings = settings_of()
        for number in range(3):
            assert guard(url, [TEXT], call=f"whole-{number}")["action"] == "NONE"
        assert "scm_open_streams 0.0" in httpx2.get(f"{url}/metrics").text


def test_litellm_sends_another_answer_under_the_same_call(service):
    guard(service, ["Say it."], "request")
    for end in (3, 20, 40):
        guard(service, [TEXT[:end]])
    other = "Quite another answer it is."
    assert guard(service, [other])["action"] == "NONE"
    assert guard(service, [other])["stream_holdback_chars"] == [0]


def test_litellms_call_id_that_was_used_before(service, monitor):
    """Its prompt says that another answer follows, whether or not it begins as the first did."""
    for texts in (["Hi."], [TEXT[:9]], [TEXT[:20]]):
        guard(service, texts)
    monitor.settings = STOP
    for text in ("harmful", TEXT[:24]):
        guard(service, ["Say it."], "request")
        assert guard(service, [text])["action"] == "BLOCKED"


def test_litellms_session_heals_after_the_monitor_failed(service, monitor, monkeypatch):
    guard(service, ["Say it."], "request")
    for end in (3, 20):
        guard(service, [TEXT[:end]])
    monkeypatch.setattr(monitor.scorer, "score", lambda chunks: 1 / 0)
    body = {"input_type": "response", "litellm_call_id": "call-1", "texts": [TEXT[:40]]}
    assert post(service, GUARDRAIL, body).status_code == 500
    monkeypatch.undo()
    monitor.settings = settings_of(DelayK(6), 1e-6)  # counts from the beginning of the text
    assert guard(service, [TEXT[:44]])["action"] == "BLOCKED"


def test_a_dialect_remembers_no_more_than_it_may():
    known = Remembered[int](4)
    for number, name in enumerate("abcd"):
        known.put("one", name, number)
    known.put("two", "x", 7)
    assert known.get("one", "a") is None and len(known) == 4
    assert known.get("one", "b") == 1  # counts as used
    for name in "yz":
        known.put("two", name, 8)
    assert [known.get("one", name) for name in "bcd"] == [1, None, 3]
    assert [known.get("two", name) for name in "xyz"] == [None, 8, 8]
    for name in "uvw":  # nobody has another's forgotten before its own
        known.put("two", name, 9)
    assert known.get("one", "b") == 1 and [known.get("two", name) for name in "uvw"] == [None, 9, 9]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("12345")), max_size=40))
def test_what_a_dialect_remembers_is_what_was_used_last(used):
    known, most = Remembered[str](5), 5
    for tenant, name in used:
        known.put(tenant, name, tenant + name)
        assert known.get(tenant, name) == tenant + name and len(known) <= most
    shares = {
        tenant: sum(known.get(tenant, name) is not None for name in "12345") for tenant in "abc"
    }
    wanted = {tenant: len({name for one, name in used if one == tenant}) for tenant in "abc"}
    for tenant, share in shares.items():  # one that lost a value had as many as any other
        assert share == wanted[tenant] or share + 1 >= max(shares.values())


def test_litellm_knows_a_call_by_its_name():
    known = LiteLLM(None, None)
    assert known._call("a", "1") is known._call("a", "1") is not known._call("b", "1")
    assert known._call("a", "") is not known._call("a", "")


def test_litellms_first_text_that_was_refused_is_still_the_first(gateway):
    """LiteLLM asks again after an error; what comes again only then is not complete."""
    with gateway(max_streams=1) as url:
        guard(url, ["Say it."], "request")
        with gateway.service.engine.taking(1):
            body = {"input_type": "response", "litellm_call_id": "call-1", "texts": [TEXT[:20]]}
            assert post(url, GUARDRAIL, body).status_code == 503
        assert guard(url, [TEXT[:20]])["stream_holdback_chars"][0] > 0
        assert guard(url, [TEXT[:20]])["stream_holdback_chars"] == [0]


def test_litellms_texts_were_answered_together_or_not_at_all(gateway):
    """Of two choices the second finds no place: neither is complete when both come again."""
    with gateway(max_streams=1) as url:
        guard(url, ["Say it."], "request")
        places, original = iter([True, False]), gateway.service.engine.take_places

        def take(count: int) -> None:
            if not next(places, True):
                raise unavailable("none here")
            original(count)

        gateway.service.engine.take_places = take
        body = {"input_type": "response", "litellm_call_id": "call-1"}
        body["texts"] = [TEXT[:20], TEXT[:12]]
        assert post(url, GUARDRAIL, body).status_code == 503
        assert all(guard(url, body["texts"])["stream_holdback_chars"])
        assert guard(url, body["texts"])["stream_holdback_chars"] == [0, 0]


def test_litellms_text_that_nobody_waited_for_is_not_complete(gateway, monitor, monkeypatch):
    original = monitor.scorer.score
    with gateway() as url:
        guard(url, ["Say it."], "request")
        guard(url, [TEXT[:9]])
        guard(url, [TEXT[:20]])
        monkeypatch.setattr(monitor.scorer, "score", lambda c: time.sleep(0.5) or original(c))
        body = {"input_type": "response", "litellm_call_id": "call-1", "texts": [TEXT[:40]]}
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(url + GUARDRAIL, json=body, timeout=0.2)
        while gateway.service.sessions._working:
            time.sleep(0.05)
        assert guard(url, [TEXT[:40]])["stream_holdback_chars"][0] > 0


def test_litellms_prompt_may_have_many_messages(service):
    calls = [{"function": {"name": "f"}}] * 129
    assert guard(service, ["x"] * 300, "request", tool_calls=calls) == {"action": "NONE"}


TRANSCRIPT = json.loads(Path(__file__).with_name("litellm_1_108_7.json").read_text())


def replay(url: str) -> tuple[str, list[dict]]:
    """Sends what LiteLLM 1.108.7 sent; returns what it shows of the answer, and the replies."""
    shown, replies = "", []
    for body in TRANSCRIPT:
        reply = post(url, GUARDRAIL, body).json()
        replies.append(reply)
        if reply["action"] == "BLOCKED":
            break
        if body["input_type"] == "response":
            text = body["texts"][0][: len(body["texts"][0]) - reply["stream_holdback_chars"][0]]
            assert text.startswith(shown)
            shown = text
    return shown, replies


def test_a_transcript_of_litellm(service, monitor):
    whole, prompt = TRANSCRIPT[-1]["texts"][0], TRANSCRIPT[0]["texts"][0]
    assert replay(service)[0] == whole
    with monitor.open(prompt) as stream:
        scores = stream.feed(whole).scores[8:]
    monitor.settings = settings_of(DelayK(1), float(scores.max()))
    with monitor.open(prompt) as stream:
        verdict = stream.feed(whole)
    for body in TRANSCRIPT:
        body["litellm_call_id"] = "another"
    shown, replies = replay(service)
    assert replies[-1]["action"] == "BLOCKED" and len(replies) < len(TRANSCRIPT)
    assert whole.startswith(shown) and len(shown) <= verdict.verified < len(whole)


def test_litellms_tool_calls_are_judged(service, monitor):
    calls = [{"id": "t", "function": {"name": "f", "arguments": '{"q": "some words"}'}}]
    assert guard(service, ["Fine."], tool_calls=calls)["action"] == "NONE"
    monitor.settings = STOP
    reply = guard(service, [], call="other", tool_calls=calls)
    assert reply["action"] == "BLOCKED" and "tool call" in reply["blocked_reason"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"function": {"arguments": {"q": "some"}}}, ['{"q": "some"}']),
        ({"id": "t1", "function": {"name": "any words", "arguments": ""}}, ["any words"]),
        ({"id": "any words", "function": {"name": "f", "arguments": "{}"}}, ["f\n{}\nany words"]),
        ({"custom": {"input": "some"}}, ['{"custom": {"input": "some"}}']), ("some", ["some"]),
        ({"function": {"arguments": ""}}, []), (None, []),
    ],
)  # fmt: skip
def test_whatever_a_tool_call_says_is_judged(call, said):
    assert read_calls({"tool_calls": [call]}) == said


def test_litellm_sends_no_more_than_it_may(service):
    for body in ({"texts": ["x"] * 129}, {"tool_calls": [{"function": {"name": "f"}}] * 129}):
        reply = post(service, GUARDRAIL, {"input_type": "response"} | body)
        assert reply.status_code == 400 and "at most 128" in reply.json()["error"]["message"]


def test_litellms_work_ends_when_it_leaves(gateway, monitor, monkeypatch):
    steps, original = [], monitor.scorer.score
    monkeypatch.setattr(
        monitor.scorer, "score", lambda c: steps.append(time.sleep(0.05)) or original(c)
    )
    with gateway() as url:
        body = {"texts": ["Some words."] * 100, "input_type": "response"}
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(url + GUARDRAIL, json=body, timeout=0.3)
        for _ in range(100):
            if "scm_open_streams 0.0" in httpx2.get(f"{url}/metrics").text:
                break
            time.sleep(0.02)
        assert len(steps) < 60


def test_litellm_knows_a_call_by_its_key_and_refuses_what_is_wrong(service):
    assert post(service, GUARDRAIL, {"texts": "x"}).status_code == 400
    assert post(service, GUARDRAIL, {"texts": [1]}).status_code == 400
    assert guard(service, [])["action"] == "NONE"


def aliyun(url: str, content: str, session: str = "", headers=None, **more):
    service = {"content": content} | ({"sessionId": session} if session else {})
    form = {"Action": "TextModerationPlus", "Service": "llm_response_moderation"}
    form |= {"ServiceParameters": json.dumps(service)} | more
    return httpx2.post(url, data=form, headers=headers, timeout=30)


def test_alibabas_fragments_are_joined(service, monitor):
    monitor.settings = settings_of(DelayK(8), 1e-6)  # more than a fragment's tokens
    words = TEXT.split(" ")
    found = [aliyun(service, f"{word} ", "s1").json()["Data"]["RiskLevel"] for word in words]
    assert found[0] == "none" and found[-1] == "high" and found == sorted(found, reverse=True)
    reply = aliyun(service, "more", "s1").json()
    assert reply["Code"] == 200 and reply["Data"]["Suggestion"] == "block"
    assert reply["Data"]["Advice"][0]["Answer"].startswith("[stopped")
    assert aliyun(service, words[0], "s2").json()["Data"]["RiskLevel"] == "none"


def test_alibaba_without_a_session_and_in_the_query(service, monitor):
    assert aliyun(service, TEXT).json()["Data"]["RiskLevel"] == "none"
    monitor.settings = STOP
    assert aliyun(service, TEXT).json()["Data"]["RiskLevel"] == "high"
    query = {"Action": "MultiModalGuard", "ServiceParameters": json.dumps({"content": TEXT})}
    assert httpx2.post(service, params=query).json()["Data"]["RiskLevel"] == "high"


def advice(url: str, content: str, session: str = "", **more) -> tuple[str, str]:
    """What Higress reads of an answer, which it passes on where it is an error."""
    reply = aliyun(url, content, session, **more)
    assert reply.status_code == 200 and reply.json()["Code"] == 200
    data = reply.json()["Data"]
    assert (data["RiskLevel"] == "high") == (data["Suggestion"] == "block") == bool(data["Advice"])
    return data["Suggestion"], reply.json()["Message"]


def forget(gateway, identity: str) -> None:
    """Drops a session, as its age would."""
    gateway.service.sessions.drop("", f"alibaba {key_of(identity)}")


def test_alibabas_fragments_are_judged_to_their_last_word(service, monitor):
    """What passes is shown at once, and nobody says which fragment is the last."""
    monitor.settings = STOP
    for number, text in enumerate(("harmful", "e\u0301" * 900, "." * 900, "A 中中中")):
        assert advice(service, text)[0] == advice(service, text, f"s{number}")[0] == "block"
    with monitor.open("") as stream:
        scores = [*stream.feed("The first ").scores, *stream.close().scores]
    assert max(scores) == scores[-1]
    monitor.settings = settings_of(DelayK(1), float(scores[-1]) - 1e-5)
    assert advice(service, "The first ", "s9")[0] == "block"


def test_alibabas_confidence_is_that_of_all_that_is_shown(service, monitor):
    monitor.settings = settings_of(DelayK(1), 1.0)
    for text in ("harmful", "中" * 30, TEXT):
        alone, with_id = (aliyun(service, text, name).json()["Data"] for name in ("", text))
        assert alone["Result"][0]["Confidence"] == with_id["Result"][0]["Confidence"] > 0


def test_alibabas_sessions_are_not_for_other_callers(gateway):
    with gateway() as url:
        assert advice(url, "One two ", "s")[0] == "pass"
        name = f"alibaba {key_of('s')}"
        path = f"{url}/v1/sessions/{name.replace(' ', '%20')}"
        for reply in (httpx2.delete(path), httpx2.get(path), httpx2.post(path, json={"text": "x"})):
            assert reply.status_code == 404
        assert post(url, "/v1/sessions", {"id": name}).status_code == 400
        assert gateway.service.sessions.find("", name).received == "One two "


@pytest.mark.parametrize("where", ["form", "query"])
def test_alibabas_text_in_another_encoding_is_blocked(service, where):
    """It would be read as signs of replacement."""
    said = quote(
        json.dumps({"content": "中文", "sessionId": "g"}, ensure_ascii=False), encoding="gbk"
    )
    said = f"Action=TextModerationPlus&ServiceParameters={said}"
    form = {"content-type": "application/x-www-form-urlencoded"}
    for content in (said, said.replace("&", "&a=b" * 99 + "&")):
        if where == "form":
            reply = httpx2.post(service, content=content, headers=form)
        else:
            reply = httpx2.post(f"{service}/?{content}")
        assert reply.status_code == 200 and reply.json()["Data"]["Suggestion"] == "block"


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 12), min_size=1, max_size=9), st.integers(1, 6))
def test_what_alibabas_session_passes_is_what_the_whole_text_passes(service, monitor, sizes, k):
    """Each answer is that on the whole text so far, but for what a later word takes back."""
    monitor.settings = settings_of(DelayK(k), 0.55)
    name, place, whole = uuid4().hex, 0, "pass"
    for size in sizes:
        fragment = TEXT[place : place + size]
        place += size
        decision = advice(service, fragment, name)[0]
        with monitor.open("") as stream:
            verdict = stream.feed(TEXT[:place])
            whole = "block" if verdict.stopped or stream.close().stopped else whole
        assert decision == whole
        if decision == "block":
            break


def test_alibabas_fragment_that_finds_no_place_is_blocked(gateway, monitor):
    """Nothing is sent again, so what follows would be judged without it."""
    with gateway(max_streams=1) as url:
        assert advice(url, "Calm words. ", "s5")[0] == "pass"
        assert advice(url, "x")[0] == "block"  # a text of no session
        assert advice(url, "One two ", "s4") == ("block", "not judged: all places are taken")
        forget(gateway, "s5")
        assert advice(url, "three ", "s4")[0] == "block"
        assert advice(url, "more ", "s5")[0] == "block"  # it was forgotten
        assert advice(url, "Calm words. ", "s6")[0] == "pass"


def test_alibabas_first_fragment_that_opens_nothing_is_blocked(gateway):
    with gateway(sessions_per_key=1) as url:
        assert advice(url, "Calm words. ", "s0")[0] == "pass"
        assert advice(url, "One two ", "s1") == ("block", "not judged: 1 sessions are open")
        forget(gateway, "s0")
        assert advice(url, "three ", "s1")[0] == "block"
        assert 'scm_failed_closed_total{what="alibaba"} 1.0' in httpx2.get(f"{url}/metrics").text


def test_alibabas_fragments_at_once(monitor, monkeypatch):
    """They are joined in the order in which they came; once one is refused, none passes."""

    async def main(refused: int) -> tuple[str, list[dict]]:
        engine = Engine(monitor, "m", 2, 0)
        sessions = Sessions(engine, 9, 60, 60)
        service = Alibaba(engine, sessions, "no")
        turn, original = iter(range(99)), engine.open

        async def place(prompt: str):
            if refused >= 0 and next(turn) == 0:
                await asyncio.sleep(0.05)
                raise unavailable("none here")
            return await original(prompt)

        engine.open = place
        async with engine.batcher:
            calls = [
                service.moderate(
                    "",
                    {"Action": "TextModerationPlus"}
                    | {"ServiceParameters": json.dumps({"content": w + " ", "sessionId": "s"})},
                )
                for w in TEXT.split(" ")
            ]
            found = await asyncio.gather(*calls)
            return sessions._sessions["", f"alibaba {key_of('s')}"].received, found

    received, found = asyncio.run(main(-1))
    assert received == TEXT + " " and {one["Data"]["Suggestion"] for one in found} == {"pass"}
    _, found = asyncio.run(main(0))
    assert {one["Data"]["Suggestion"] for one in found} == {"block"}


def test_alibabas_session_that_was_stopped_is_remembered_as_long_as_it_is_asked_for(
    gateway, monitor, monkeypatch
):
    monkeypatch.setattr("serve.dialects.alibaba.MOST_IDS", 2)
    with gateway() as url:
        monitor.settings = STOP
        assert advice(url, TEXT, "bad")[0] == "block"
        forget(gateway, "bad")
        monitor.settings = settings_of()
        for number in range(4):
            assert advice(url, "x", f"s{number}")[0] == "pass"
            assert advice(url, "x", "bad")[0] == "block"


def test_alibabas_session_is_not_opened_anew(gateway, monitor):
    with gateway(idle_timeout=0.5) as url:
        assert aliyun(url, "One two ", "calm").status_code == 200
        monitor.settings = STOP
        assert aliyun(url, "One two ", "harmful").json()["Data"]["Suggestion"] == "block"
        monitor.settings = settings_of()
        time.sleep(0.8)
        assert advice(url, "three ", "calm") == ("block", "not judged: there is no such session")
        assert aliyun(url, "three ", "harmful").json()["Data"]["Suggestion"] == "block"
        gateway.service.sessions.sweep()
        assert gateway.service.sessions._sessions == {}


def test_alibabas_sessions_make_way(gateway, monkeypatch):
    monkeypatch.setattr("serve.sessions.RESTING", 0.0)
    with gateway(sessions_per_key=3) as url:
        for number in range(6):
            assert aliyun(url, "Some words. ", f"s{number}").status_code == 200
        assert advice(url, "more ", "s0")[0] == "block"  # not as if it were new
        assert aliyun(url, "more ", "s5").status_code == 200


def test_alibabas_session_stays_failed(service, monitor, monkeypatch):
    """What came before is not sent again, so nobody could judge it."""
    assert aliyun(service, "One two ", "s3").status_code == 200
    monkeypatch.setattr(monitor.scorer, "score", lambda chunks: 1 / 0)
    assert advice(service, "three ", "s3")[0] == "block"
    monkeypatch.undo()
    assert advice(service, "four ", "s3")[0] == "block"


@pytest.mark.parametrize("sent", ['{"content": null, "sessionId": "s"}', "another action"])
def test_alibabas_session_is_blocked_once_a_fragment_cannot_be_read(service, sent):
    assert advice(service, "One two ", "s")[0] == "pass"
    form = {"ServiceParameters": sent} if sent[0] == "{" else {"Action": sent}
    assert advice(service, "three ", "s", **form)[0] == "block"
    assert advice(service, "four ", "s")[0] == "block"


def test_alibabas_ids_are_held_by_a_name_of_their_own(gateway, monitor):
    with gateway() as url:
        monitor.settings = STOP
        assert advice(url, TEXT, "x" * 90_000)[0] == advice(url, "x", "x" * 90_000)[0] == "block"
        ((_, name),) = gateway.service.sessions._sessions
        assert len(name) < 50
        guard(url, ["Say it."], "request", call="y" * 90_000)
        assert all(len(one) < 50 for one in gateway.service.guardrail._calls._values[""])


def test_alibabas_caller_without_a_key_may_sign(service, monitor):
    """Its signature, in the header where a key would be, differs each time."""
    monitor.settings = settings_of(DelayK(8), 1e-6)
    found = []
    for number, word in enumerate(TEXT.split(" ")):
        headers = {"authorization": f"ACS3-HMAC-SHA256 Signature={number}é".encode("latin-1")}
        found.append(advice(service, f"{word} ", "s1", headers=headers)[0])
    assert found[0] == "pass" and found[-1] == "block"


@pytest.mark.parametrize(
    "form",
    [
        {"Action": "DeleteAll"}, {"ServiceParameters": "no json"}, {"ServiceParameters": "[]"},
        {"ServiceParameters": '{"content": 3}'}, {"ServiceParameters": "x" * (1 << 20)},
        {"ServiceParameters": '{"content": "x", "sessionId": 0}'},
    ],
)  # fmt: skip
def test_alibaba_blocks_what_it_cannot_read(service, form):
    decision, message = advice(service, TEXT, **form)
    assert decision == "block" and message.startswith("not judged: ")


def test_alibaba_refuses_a_wrong_key(gateway, tmp_path):
    (tmp_path / "keys").write_text("one\n")
    with gateway(key_file=str(tmp_path / "keys")) as url:
        assert aliyun(url, TEXT).status_code == 401
