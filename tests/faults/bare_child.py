"""A training process that only says what one would say, in a few milliseconds: run with `python -S -E`.

The label `end` of the job says how it ends: `succeeds`, `fails` for good, `crashes_once`, or `lingers` until SIGTERM
and then as the core does. Its lines are those of dsd_core.events; `test_soak.py` holds them to that.
"""

import os
import signal
import sys
import time

AT = "2026-01-01T00:00:00.000Z"
SCORE = '"miou":0.5,"pixel_accuracy":0.75,"per_class_iou":{"road":0.5}'
STARTED = (
    f'{{"at":"{AT}","type":"started","spec_digest":"d","code_version":"1","device":"cpu","torch":"0","threads":1,'
    '"total_steps":2}'
)
PROGRESS = (
    f'{{"at":"{AT}","type":"progress","phase":"student","step":1,"steps":2,"total_step":1,"total_steps":2,"epoch":0,'
    '"losses":{"loss":1.0},"learning_rate":0.1,"images_per_s":7.0,"eta_s":3.0}'
)
FAILED = f'{{"at":"{AT}","type":"failed","code":"diverged","message":"The loss is NaN.","field":"/train"}}'
FINISHED = (
    f'{{"at":"{AT}","type":"finished","result":{{"student":{{{SCORE}}},"student_cost":{{"network":"espnet",'
    '"params":1,"flops":1,"latency_ms":1.0,"height":32,"width":32},"files":[],"classes":["road"],"onnx_max_error":0.0,'
    '"dataset_fingerprint":"f","spec_digest":"d","code_version":"1","train_seconds":0.1}}'
)
DIVERGED = 77
CHECKPOINTED = 75
LINGERS_S = 60


def main(spec_file: str, out: str) -> int:
    with open(spec_file) as file:
        spec = file.read()
    events = os.open(f"{out}/events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def say(*lines: str) -> None:
        os.write(events, "".join(line + "\n" for line in lines).encode())

    def ends(how: str) -> bool:
        return f'"end": "{how}"' in spec

    if ends("lingers"):
        signal.signal(signal.SIGTERM, lambda *_: os._exit(CHECKPOINTED))
    say(STARTED, PROGRESS)
    if ends("fails"):
        say(FAILED)
        return DIVERGED
    if ends("crashes_once") and not os.path.exists(f"{out}/crashed"):
        os.close(os.open(f"{out}/crashed", os.O_CREAT))
        os.kill(os.getpid(), signal.SIGKILL)
    if ends("lingers"):
        time.sleep(LINGERS_S)
    say(FINISHED)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[sys.argv.index("--out") + 1]))
