"""`danlu serve` under load from a second process: as many connections as its bound, twice as many, bad requests.

python benchmarks/serve.py DIR [--json FILE] [--seconds 60] [--concurrency 16] [--input FILE] [--options "--threads 1"]

DIR is a trained folder. wrk (Debian: apt-get install wrk) sends POST /predict with one item a request over connections
that stay open, each as soon as its last answer is there. First as many connections as requests are allowed at a time:
every answer must be 200. Then twice as many: every answer must be 200 or 429. Then requests that are too long or
malformed. Client and service share the machine, so the times are an upper bound.
"""

import argparse
import contextlib
import http.client
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _machine import record, write

TEXTS = [
    "北京大学的同学们在图书馆里学习数学",
    "这家酒店的服务很好，房间干净，下次还会再来",
    "今天天气不错",
    "书的内容空洞，不值得买",
    "上海市政府昨天宣布，将在未来三年内新建五条地铁线路，以缓解市中心的交通压力",
    "价格便宜，送货很快，就是包装差了一点",
    "科学家发现，这种方法在多数情况下比原来的方法快一倍，而准确率没有下降",
    "很好",
]
LUA = """
local threads = {{}}
function setup(thread) table.insert(threads, thread) end
function init(args)
  counts, turn, bodies = {{}}, 0, {{ {bodies} }}
  headers = {{ ["Content-Type"] = "application/json" }}
end
function request()
  turn = turn % #bodies + 1
  return wrk.format("POST", "/predict", headers, bodies[turn])
end
function response(status) counts["s" .. status] = (counts["s" .. status] or 0) + 1 end
function done(summary, latency)
  local total = {{}}
  for _, thread in ipairs(threads) do
    for name, n in pairs(thread:get("counts")) do total[name] = (total[name] or 0) + n end
  end
  local e, parts = summary.errors, {{}}
  for name, n in pairs(total) do table.insert(parts, string.format('"%s": %d', name:sub(2), n)) end
  io.write(string.format('RESULT {{"status": {{%s}}, ', table.concat(parts, ", ")))
  io.write(string.format('"seconds": %.3f, ', summary.duration / 1e6))
  io.write(string.format('"p50_ms": %.3f, "p99_ms": %.3f, "most_ms": %.3f, ',
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
  io.write(string.format('"errors": {{"connect": %d, "read": %d, "write": %d, "timeout": %d}}}}\\n',
    e.connect, e.read, e.write, e.timeout))
end
"""


@contextlib.contextmanager
def service(folder: Path, options: list[str]) -> Iterator[tuple[int, int]]:
    """(port, process id) of a service on a free port."""
    command = [sys.executable, "-m", "danlu", "serve", str(folder), "--port", "0", *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r":(\d+)[;,]", child.stdout.readline())  # type: ignore[union-attr]
        if not found:
            raise SystemExit("the service did not start")
        yield int(found[1]), child.pid
    finally:
        child.terminate()
        if child.wait(60):
            raise SystemExit(f"the service ended with exit code {child.returncode}")


def load(port: int, bodies: list[str], connections: int, seconds: int) -> dict[str, object]:
    """What wrk saw: answers by status, percentiles of the time to an answer, errors of connections."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua", encoding="utf-8") as script:
        script.write(LUA.format(bodies=", ".join(f"[==[{body}]==]" for body in bodies)))
        script.flush()
        options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", script.name]
        ended = subprocess.run(
            ["wrk", *options, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True
        )
    result = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith("RESULT"))[7:])
    return {"connections": connections, "per_second": sum(result["status"].values()) / result["seconds"], **result}


def ask(port: int, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, object]:
    """Status and JSON of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET" if body is None else "POST", path, body, {} if body is None else {"Content-Type": kind})
    reply = connection.getresponse()
    return reply.status, json.load(reply)


def bad_requests(port: int, fields: list[str]) -> dict[str, list[int]]:
    """(status, expected status) of requests that no service should take."""
    item = dict.fromkeys(fields, "好")
    cases = {
        "2 MB": (b" " * 2_000_000, 413), "not JSON": (b"{", 400), "NaN": (b'{"text": NaN}', 400),
        "100,000 brackets": (b"[" * 100_000, 400), "5,000 digits": (b'{"text": ' + b"9" * 5000 + b"}", 400),
        "no field": (b"{}", 422), "another type": (json.dumps({**item, fields[0]: 1}).encode(), 422),
        "20,000 characters": (json.dumps({**item, fields[0]: "a" * 20_000}).encode(), 422),
        "200 items": (json.dumps({"items": [item] * 200}).encode(), 422),
        "half a character": (json.dumps({**item, fields[0]: "\ud83d"}).encode(), 422),
    }  # fmt: skip
    found = {name: [ask(port, "/predict", body)[0], expected] for name, (body, expected) in cases.items()}
    return found | {"a form": [ask(port, "/predict", b"text=a", "application/x-www-form-urlencoded")[0], 415]}


def memory(process: int) -> float:
    """Resident MiB of a process, nan where the system does not tell."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
        return int(found[1]) / 1024 if found else float("nan")
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--input", type=Path, help="texts, one a line")
    parser.add_argument("--options", default="", help="more options of danlu serve")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("this needs wrk; on Debian and Ubuntu: apt-get install wrk")
    head = record(["danlu", "torch", "fastapi", "uvicorn"])
    texts = options.input.read_text(encoding="utf-8").splitlines() if options.input else TEXTS
    bound = options.concurrency
    with service(options.folder, ["--concurrency", str(bound), *shlex.split(options.options)]) as (port, process):
        before = memory(process)
        fields = ask(port, "/health")[1]["fields"]  # type: ignore[index]
        bodies = [json.dumps(dict.fromkeys(fields, text)) for text in texts if text.strip()]
        at_bound = load(port, bodies, bound, options.seconds)
        health = ask(port, "/health")[1]
        beyond = load(port, bodies, 2 * bound, max(1, options.seconds // 4))
        bad = bad_requests(port, fields)
        still = ask(port, "/predict", bodies[0].encode())[0]
        after = memory(process)
    print(f"{bound} connections, {at_bound['seconds']:.0f} s: {at_bound['status']}, errors {at_bound['errors']}")
    print(f"  {at_bound['per_second']:.0f} a second; p50 {at_bound['p50_ms']:.1f} ms, p99 {at_bound['p99_ms']:.1f} ms")
    print(f"  {health['items'] / health['batches']:.1f} items a call of the model")  # type: ignore[index]
    print(f"{2 * bound} connections: {beyond['status']}, errors {beyond['errors']}")
    print("bad requests: " + ", ".join(f"{name} {got}" for name, (got, _) in bad.items()))
    print(f"memory {before:.0f} MiB before, {after:.0f} MiB after; a last request: {still}")
    errors = sum(at_bound["errors"].values()) + sum(beyond["errors"].values())  # type: ignore[attr-defined]
    met = {
        "every answer 200 at the bound": set(at_bound["status"]) == {"200"},  # type: ignore[call-overload]
        "only 200 or 429 at twice the bound": set(beyond["status"]) <= {"200", "429"},  # type: ignore[call-overload]
        "no connection failed": errors == 0,
        "bad requests are 4xx of their kind": all(got == expected for got, expected in bad.values()),
        "answers afterwards": still == 200,
    }
    for name, yes in met.items():
        print(f"{'met' if yes else 'MISSED':<7} {name}")
    setting = {"seconds": options.seconds, "concurrency": bound, "texts": len(bodies), "options": options.options}
    measured = {
        "at_the_bound": at_bound,
        "at_twice_the_bound": beyond,
        "bad_requests": bad,
        "memory_mib": [before, after],
    }
    write(options.json, {**head, "setting": setting, **measured, "health": health, "met": met})
    raise SystemExit(0 if all(met.values()) else 1)


if __name__ == "__main__":
    main()
