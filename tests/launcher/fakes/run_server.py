"""A stage server that behaves as FAKE_SERVER says."""

import os
import signal
import subprocess
import sys

from swarm_jax.launcher import flags

parser = flags.Parser()
flags.add_experiment(parser)
flags.add_network(parser)
flags.add_process(parser)
flags.add_worker(parser, name=None)
parser.add_argument("--stage", type=int, required=True)
args = parser.parse_args()
assert args.initial_peers == ["/ip4/x", "/ip4/y"]
behaviour = os.environ.get("FAKE_SERVER")
if behaviour == "refuse":
    print("This port is taken.")
    sys.exit(flags.EXIT_BAD_INPUT)
if behaviour == "cut_off":
    while not (args.workdir / "trainer.ready").exists():
        signal.sigtimedwait([signal.SIGUSR1], 0.05)
    sys.exit(flags.EXIT_BAD_INPUT)
if behaviour == "die" and args.stage == 0:
    print("Out of memory.")
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "stubborn":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
if behaviour == "leave":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if behaviour == "leave_badly":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Nobody took my sum."))
(args.workdir / f"{args.name}.ready").touch()
while True:
    signal.pause()
