"""The application: answers as the command line gives them, every bound, what a failure tells, the description."""

import asyncio
import json
import threading

import pytest
import torch

from danlu.data.errors import InputError

TEXTS = ["很好", "不好", "我们喜欢北京的数学", "", "好", "不", "数学 很 好 " * 30, "𠮷野家"]


def several(texts):
    return {"items": [{"text": text} for text in texts]}


def test_the_answer_is_that_of_the_folder_in_order(make_service, classifier, tagger, request_):
    for trained, task in ((classifier, "classify"), (tagger, "tag")):
        reply = request_(make_service(trained), body=several(TEXTS))
        assert reply.status == 200 and reply.headers["content-type"] == "application/json"
        expected = list(trained.predict(TEXTS))
        assert reply.json == {"predictions": expected, "model": "a-model", "task": task}


def test_one_item_alone_needs_no_list(make_service, tagger, request_):
    reply = request_(make_service(tagger), body={"text": "我们在北京"})
    assert reply.json["predictions"] == list(tagger.predict(["我们在北京"]))


def test_an_answer_does_not_depend_on_its_company(make_service, classifier, request_):
    service = make_service(classifier, max_batch=3)
    together = request_(service, body=several(TEXTS)).json["predictions"]
    for text, there in zip(TEXTS, together, strict=True):
        (alone,) = request_(service, body={"text": text}).json["predictions"]
        assert alone["label"] == there["label"]
        assert alone["confidence"] == pytest.approx(there["confidence"], abs=1e-5)


def test_requests_at_the_same_time_share_the_model(make_service, classifier, ask_):
    """40 requests of one item, far fewer calls of the model, to each its own answer."""
    service = make_service(classifier, max_batch=16, max_wait=0.2, concurrency=40)
    texts = [f"很好 {i}" for i in range(40)]

    async def all_at_once():
        return await asyncio.gather(*(ask_(service, body={"text": text}) for text in texts))

    replies = asyncio.run(all_at_once())
    assert [reply.status for reply in replies] == [200] * 40
    assert [reply.json["predictions"][0]["text"] for reply in replies] == texts
    health = service.health()
    assert (health.batches, health.items) == (3, 40)  # 16, 16 and 8
    assert (service.in_flight, health.waiting) == (0, 0)


def test_the_model_runs_in_one_thread_without_gradients_with_its_number_of_threads(make_service, classifier, request_):
    seen = []

    class Watched:
        task, fields = classifier.task, classifier.fields

        def predict(self, items, chunk):
            for result in classifier.predict(items, chunk):
                seen.append((threading.current_thread().name, torch.get_num_threads()))
                yield result

    service = make_service(Watched())
    inside = []
    before, classifier.task.predict = (
        classifier.task.predict,
        lambda model, part: (
            inside.append(torch.is_inference_mode_enabled())
            or type(classifier.task).predict(classifier.task, model, part)
        ),
    )
    try:
        assert request_(service, body={"text": "很好"}).status == 200
    finally:
        classifier.task.predict = before
    assert inside == [True]
    assert seen == [("danlu-model", torch.get_num_threads())]


def test_a_task_says_which_fields_an_item_has(make_service, slow, request_):
    slow.fields = ("text_a", "text_b")
    slow.predict = lambda items, chunk: [{"label": item["text_a"] + item["text_b"]} for item in items]
    service = make_service(slow)
    service.warm_up()
    assert request_(service, body={"text_a": "x", "text_b": "y"}).json["predictions"] == [{"label": "xy"}]
    refused = request_(service, body={"items": [{"text": "x"}]})
    assert (refused.status, refused.json["item"]) == (422, 0) and "no 'text_a'" in refused.json["error"]
    assert request_(service, "/health", method="GET").json["fields"] == ["text_a", "text_b"]
    schema = request_(service, "/openapi.json", method="GET").json
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["anyOf"][1]["properties"]) == {"text_a", "text_b"}


# Bounds


@pytest.mark.parametrize("length", [101, 10**18, 10**25])
def test_a_long_body_is_refused_by_its_declared_length(make_service, classifier, request_, length):
    headers = [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-length", str(length).encode())]
    reply = request_(make_service(classifier, max_body=100), body=[b"{", b"}"], headers=headers)
    assert reply.status == 413 and "longer than 100 bytes" in reply.json["error"]
    assert reply.unread == 2  # nothing of it was read


def test_a_long_body_is_refused_while_it_comes(make_service, classifier, request_):
    """No length, or a wrong one: what is read never exceeds the bound by more than one part."""
    for more in ([], [(b"content-length", b"10")], [(b"content-length", b"no number")]):
        headers = [(b"host", b"x"), (b"content-type", b"application/json"), *more]
        reply = request_(make_service(classifier, max_body=100), body=[b" " * 40] * 10, headers=headers)
        assert reply.status == 413
        assert reply.unread == 7


def test_a_body_of_just_the_bound_is_read(make_service, classifier, request_):
    body = json.dumps({"text": "a" * 20}).encode()
    assert request_(make_service(classifier, max_body=len(body)), body=body).status == 200
    assert request_(make_service(classifier, max_body=len(body) - 1), body=body).status == 413


def test_a_body_that_does_not_come_is_not_waited_for(make_service, classifier, ask_):
    service = make_service(classifier, patience=0.1)
    reply = asyncio.run(ask_(service, body=[b'{"text"'], endless=True))
    assert (reply.status, reply.headers["connection"]) == (408, "close")
    assert "within 0.1 s" in reply.json["error"] and service.in_flight == 0


def test_items_and_characters_are_bounded(make_service, classifier, request_):
    service = make_service(classifier, max_items=2, max_text=4)
    assert request_(service, body=several(["abcd", "很好很好"])).status == 200
    many, long = request_(service, body=several("abc")), request_(service, body=several(["a", "abcde"]))
    assert (many.status, many.json) == (422, {"error": "3 items, a request may hold 2; send several requests"})
    assert (long.status, long.json["item"]) == (422, 1)


def test_beyond_the_bound_requests_are_turned_away_at_once(make_service, slow, ask_):
    service = make_service(slow, concurrency=3, max_batch=1)

    async def crowd():
        held = [asyncio.create_task(ask_(service, body={"text": str(i)})) for i in range(3)]
        while service.in_flight < 3 or not slow.began.is_set():
            await asyncio.sleep(0.005)
        more = await asyncio.gather(*(ask_(service, body=[b"never", b"read"]) for _ in range(5)))
        health = await ask_(service, "/health", method="GET")  # answers all the same
        slow.gate.set()
        return await asyncio.gather(*held), more, health

    held, more, health = asyncio.run(crowd())
    assert [reply.status for reply in held] == [200] * 3
    assert {(reply.status, reply.headers["retry-after"], reply.unread) for reply in more} == {(429, "1", 2)}
    assert "3 requests are worked on" in more[0].json["error"]
    assert (health.status, health.json["in_flight"], health.json["waiting"]) == (200, 3, 2)
    assert asyncio.run(ask_(service, body={"text": "again"})).status == 200


def test_the_time_is_up_and_the_queue_is_rid_of_it(make_service, slow, ask_):
    service = make_service(slow, timeout=0.2, max_batch=1, max_wait=0)

    async def late():
        first = asyncio.create_task(ask_(service, body={"text": "first"}))
        while not slow.began.is_set():
            await asyncio.sleep(0.005)
        second = asyncio.create_task(ask_(service, body={"text": "second"}))
        return await first, await second

    first, second = asyncio.run(late())
    assert (first.status, second.status) == (504, 504)
    assert "no answer within 0.2 s" in second.json["error"]
    assert (service.in_flight, service.batcher.waiting()) == (0, 0)
    slow.gate.set()
    assert asyncio.run(ask_(service, body={"text": "third"})).status == 200
    assert slow.calls == [["first"], ["third"]]  # the second never reached the model


def test_who_leaves_is_not_worked_for(make_service, slow, ask_):
    service = make_service(slow, max_batch=1, max_wait=0)

    async def leaving():
        gone = asyncio.Event()
        first = asyncio.create_task(ask_(service, body={"text": "first"}))
        while not slow.began.is_set():
            await asyncio.sleep(0.005)
        second = asyncio.create_task(ask_(service, body={"text": "second"}, leave=gone))
        while not service.batcher.waiting():
            await asyncio.sleep(0.005)
        gone.set()
        await second
        counts = service.in_flight, service.batcher.waiting()
        slow.gate.set()
        return counts, await first

    counts, first = asyncio.run(leaving())
    assert counts == (1, 0) and first.status == 200 and slow.calls == [["first"]]


def test_who_leaves_while_sending_frees_the_place(make_service, classifier, ask_):
    service, gone = make_service(classifier), asyncio.Event()
    gone.set()
    asyncio.run(ask_(service, body=[b'{"text"'], endless=True, leave=gone))
    assert service.in_flight == 0 and service.batcher.batches == 0


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (b"application/json", 200), (b"Application/JSON; Charset=UTF-8", 200),
        (b'application/json;charset="utf-8"', 200),
        (b"text/plain", 415), (b"application/x-www-form-urlencoded", 415), (b"multipart/form-data; boundary=x", 415),
        (b"", 415), (b"application/json; charset=gb18030", 415), (b"application/json, text/plain", 415),
        (b"application/json; charset*" + b"9" * 5000 + b"*=x", 200), (b"\xff\xfe", 415),
    ],
)  # fmt: skip
def test_the_content_type(make_service, classifier, request_, kind, status):
    headers = [(b"host", b"x"), (b"content-type", kind)]
    assert request_(make_service(classifier), body={"text": "好"}, headers=headers).status == status


def test_no_content_type_or_a_packed_body_is_refused(make_service, classifier, request_):
    service = make_service(classifier)
    assert request_(service, body={"text": "好"}, headers=[(b"host", b"x")]).status == 415
    packed = [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
    assert "not be compressed" in request_(service, body=b"\x1f\x8b", headers=packed).json["error"]


# Failures


class Failing:
    """A model that raises what a text asks for."""

    fields = ("text",)

    def __init__(self, task):
        self.task = task

    def predict(self, items, chunk):
        errors = {
            "memory": RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 TB"),
            "input": InputError("this text has no words"),
            "deep": RecursionError("maximum recursion depth exceeded"),
            "fault": KeyError("secret"),
            "runtime": RuntimeError("secret"),
        }
        for text in items:
            if text in errors:
                raise errors[text]
        return [{"text": text, "label": float("nan") if text == "nan" else 1.0} for text in items]


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("memory", 503, "out of memory"),
        ("input", 422, "this text has no words"),
        ("deep", 422, "nested too deep"),
        ("good", 200, ""),
    ],
)
def test_what_the_model_raises(make_service, classifier, request_, text, status, words):
    reply = request_(make_service(Failing(classifier.task)), body={"text": text})
    assert reply.status == status and words in reply.json.get("error", "")


@pytest.mark.parametrize(("text", "error"), [("fault", KeyError), ("runtime", RuntimeError), ("nan", ValueError)])
def test_a_fault_of_ours_is_500_without_details_and_raised_for_the_log(make_service, classifier, text, error, ask_):
    service, sent = make_service(Failing(classifier.task)), []

    async def one():
        parts = [{"type": "http.request", "body": json.dumps({"text": text}).encode(), "more_body": False}]

        async def receive():
            return parts.pop() if parts else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
            "headers": [(b"host", b"x"), (b"content-type", b"application/json")], "scheme": "http", "root_path": "",
            "http_version": "1.1", "client": None, "server": None, "asgi": {"version": "3.0"}, "state": {},
        }  # fmt: skip
        await service(scope, receive, send)

    with pytest.raises(error):
        asyncio.run(one())
    assert sent[0]["status"] == 500 and b"secret" not in sent[1]["body"]
    assert json.loads(sent[1]["body"])["error"].startswith("the model failed")
    assert service.in_flight == 0


def test_a_model_that_cannot_work_is_told_before_it_is_served(make_service, slow):
    def predict(items, chunk):
        raise error

    slow.predict = predict
    error = RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="do not fit"):
        make_service(slow).warm_up()
    error = InputError("give a condition")  # of the text, not of the model
    make_service(slow).warm_up()


# What stands around it


def test_health_tells_what_is_served(make_service, classifier, request_):
    from danlu import __version__

    service = make_service(classifier)
    request_(service, body=several("abc"))
    assert request_(service, "/health", method="GET").json == {
        "ready": True, "model": "a-model", "task": "classify", "fields": ["text"], "version": __version__,
        "waiting": 0, "in_flight": 0, "batches": 1, "items": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405), ("POST", "/health", 405), ("DELETE", "/", 405), ("OPTIONS", "/predict", 405),
        ("GET", "/none", 404), ("POST", "/predict/", 404), ("GET", "/docs", 404), ("GET", "/../etc/passwd", 404),
    ],
)  # fmt: skip
def test_other_routes(make_service, classifier, request_, method, path, status):
    reply = request_(make_service(classifier), path, method=method)
    assert reply.status == status and set(reply.json) == {"error"}
    assert ("allow" in reply.headers) == (status == 405)
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_the_description_names_every_answer(make_service, classifier, request_):
    service = make_service(classifier, max_text=77, max_items=5)
    described = request_(service, "/openapi.json", method="GET").json
    assert set(described["paths"]) == {"/predict", "/health"}
    answers = described["paths"]["/predict"]["post"]["responses"]
    assert set(answers) == {"200", *map(str, (400, 408, 413, 415, 421, 422, 429, 500, 503, 504))}
    for code, answer in answers.items():
        name = answer["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
        assert name == ("Answer" if code == "200" else "Problem") and name in described["components"]["schemas"]
    body = described["paths"]["/predict"]["post"]["requestBody"]
    assert body["required"] and body["content"]["application/json"]["schema"]["anyOf"][0]["properties"]["items"] == {
        "type": "array",
        "maxItems": 5,
        "items": {
            "type": "object",
            "properties": {"text": {"type": "string", "maxLength": 77}},
            "required": ["text"],
            "additionalProperties": False,
        },
    }
    assert "security" not in described


def test_the_description_names_the_token(make_service, classifier, request_):
    token = [(b"authorization", b"Bearer a-token-of-some-length")]
    service = make_service(classifier, token="a-token-of-some-length")
    described = request_(service, "/openapi.json", method="GET", headers=token).json
    assert described["security"] == [{"token": []}]
    assert described["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert all("401" in next(iter(route.values()))["responses"] for route in described["paths"].values())
