"""Tokens a second of jaxalign's engine beside `transformers.generate` and Tunix's sampler, from the same weights.

    bash tools/bench_generate.sh                          with the peers, in an environment of their own
    python tools/bench_generate.py --peers=               without
    --json=FILE --runs=5 --first=3 --dtypes=float32,bfloat16 --peers=transformers,tunix --work=even,ragged

Each side is a process of its own (`bench_generators.py`), told what to do in turn: ours, a peer, ours, the next peer,
ours, … All draw exactly the tokens that each request's limit allows, but in `stops`; only those count. Rows:

- `check`: the share of greedy tokens that both sides agree on before they first differ: the same model is timed. Of
  float32 alone, for after a near tie that falls otherwise nothing agrees.
- `32x64`: 32 prompts of 16 tokens, 64 new ones each, drawn at temperature 1, and the likeliest (`greedy`).
- `ragged`: 256 such prompts, lengths geometric of mean 32, at most 128, at temperature 1. A peer is told the lengths
  beforehand and served like ones together, in batches of the size at which it is fastest; ours gets all at once, with
  their limits, and as many slots as it is fastest with.
- `stops`: the same prompts, but nobody knows the lengths: a response ends with the first of so many stop tokens that it
  has about 32 tokens, or at 128. A peer is served in the order of the prompts, in batches of the size at which it is fastest; such a batch
  goes on until its last response has ended.
- `compile`: the first call of a fresh process at `32x64`, less what such a call takes later; nothing is cached on disk.

A figure is the median of the runs; the table shows their range, too. The ratio is above 1 where ours is better.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

SIDES = pathlib.Path(__file__).with_name("bench_generators.py")
SHAPE = dict(vocab=4096, width=256, layers=6, heads=4, mlp=672, theta=1_000_000, eps=1e-5)
PROMPTS, PROMPT, NEW = 32, 16, 64
REQUESTS, MEAN, CAP = 256, 32, 128
COMPILED = ("tunix",)  # the peers that compile at their first call
BATCHES = (16, 32, 64, 128)  # that a side may choose from for the ragged requests


def random_weights(shape, seed=0):
    """{name: float32 array} in jaxalign's axes: such that neither attention nor the next token is close to uniform."""
    V, D, L, N, F = (shape[name] for name in ("vocab", "width", "layers", "heads", "mlp"))
    shapes = {"query": (D, N, D // N), "key": (D, N, D // N), "value": (D, N, D // N), "out": (N, D // N, D),
              "gate": (D, F), "up": (D, F), "down": (F, D)}
    rng = np.random.default_rng(seed)
    made = {name: rng.normal(size=(L, *size)) / (F if name == "down" else D) ** 0.5 for name, size in shapes.items()}
    made |= {name: rng.uniform(0.5, 1.5, (L, D)) for name in ("attention_norm", "mlp_norm")}
    made |= {"embed": 0.1 * rng.normal(size=(V, D)), "final_norm": rng.uniform(0.5, 1.5, D)}
    return {name: value.astype(np.float32) for name, value in made.items()}


def requests(size, limits, seed, vocab, greedy=False, batch=PROMPTS, stops=()):
    prompts = np.random.default_rng(seed).integers(1, vocab, (size, PROMPT)).tolist()
    return dict(prompts=prompts, limits=[int(n) for n in limits], greedy=greedy, batch=batch, stops=list(stops), seed=0)


class Side:
    """A process that generates."""

    def __init__(self, name, folder):
        self.name, self.said = name, folder / f"{name}.log"
        # Every first call compiles; several sides share one GPU.
        changed = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                   "HF_HUB_OFFLINE": "1"}
        changed["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SIDES.parents[1]), os.environ.get("PYTHONPATH")]))
        with open(self.said, "w") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(SIDES), name, str(folder / "shape.json"), str(folder / "weights.npz")], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=os.environ | changed)
        self.device = self._answer()["device"]

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise SystemExit(f"{self.said.read_text()[-3000:]}\n{self.name} ended; the reason stands above. "
                             "bash tools/bench_generate.sh installs the peers, --peers= leaves them out")
        return json.loads(line)

    def __call__(self, request):
        """(seconds, tokens)"""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        stops = frozenset(request["stops"])
        for tokens, limit in zip(answer["tokens"], request["limits"], strict=True):
            early = len(tokens) < limit and tokens and tokens[-1] in stops
            if len(tokens) != limit and not early or not stops.isdisjoint(tokens[:-1]):
                raise SystemExit(f"{self.name} drew {len(tokens)} tokens where {limit} were asked for")
        return answer["seconds"], answer["tokens"]

    def close(self):
        with self.process:  # closes its pipes and waits
            pass


def rate(seconds, tokens):
    return sum(map(len, tokens)) / seconds


class Bench:
    """The rows of one dtype."""

    def __init__(self, shape, peers, runs, first, sizes, folder):
        self.shape, self.peers, self.runs, self.folder, self.rows = shape, peers, runs, folder, []
        self.sizes, self.compile = sizes, {}
        np.savez(folder / "weights.npz", **random_weights(shape))
        (folder / "shape.json").write_text(json.dumps(shape))
        self.sides, self.first = {}, first

    def start(self):
        """The first calls of fresh processes; the last of each side stays."""
        for _ in range(self.first):
            self.close()
            for name in ("jaxalign", *self.peers):
                self.sides[name] = Side(name, self.folder)
                self.compile.setdefault(name, []).append(self.sides[name](self._even())[0])

    def close(self):
        while self.sides:
            self.sides.popitem()[1].close()

    def _even(self, greedy=False):
        n = self.sizes["prompts"]
        return requests(n, [self.sizes["new"]] * n, 1, self.shape["vocab"], greedy, batch=n)

    def measure(self):
        self.start()
        if self.shape["dtype"] == "float32":
            self._check()
        if "even" in self.sizes["work"].split(","):
            self._measure_even()
        if "ragged" in self.sizes["work"].split(","):
            self._measure_ragged()
        if "stops" in self.sizes["work"].split(","):
            self._measure_stops()
        return self.rows

    def _measure_even(self):
        size = f"{self.sizes['prompts']}x{self.sizes['new']}"
        later = self._compare(size, lambda name: self._even())
        self._compare(f"{size} greedy", lambda name: self._even(greedy=True))
        for peer in filter(COMPILED.__contains__, self.peers):
            self._row("compile", peer, *(self._compiling(side, later[peer, side]) for side in ("jaxalign", peer)), "s")
        if not self.peers:
            self._row("compile", None, self._compiling("jaxalign", later[None, "jaxalign"]), None, "s")

    def _measure_ragged(self):
        n = self.sizes["requests"]
        limits = np.minimum(np.random.default_rng(2).geometric(1 / self.sizes["mean"], n), self.sizes["cap"])
        self._compare_at_best("ragged", limits)

    def _measure_stops(self):
        n, vocab = self.sizes["requests"], self.shape["vocab"]
        stops = np.random.default_rng(4).permutation(vocab)[:max(1, vocab // self.sizes["mean"])].tolist()
        self._compare_at_best("stops", [self.sizes["cap"]] * n, stops)

    def _compare_at_best(self, name, limits, stops=()):
        best = {side: self._best_batch(side, limits, stops) for side in self.sides}
        self._compare(name, lambda side: requests(len(limits), limits, 3, self.shape["vocab"], batch=best[side], stops=stops))

    def _compiling(self, side, later):
        """What the first calls took beyond a later one."""
        return [seconds - statistics.median(later) for seconds in self.compile[side]]

    def _check(self):
        """How many greedy tokens agree before the first that does not."""
        request = self._even(greedy=True)
        tokens = {name: np.array(side(request)[1]) for name, side in self.sides.items()}
        for peer in self.peers:
            same = np.cumprod(tokens["jaxalign"] == tokens[peer], axis=1).mean()
            self._row("check", peer, [float(same)], [1.0], "share of greedy tokens the same")

    def _best_batch(self, name, limits, stops=()):
        speed = {}
        for batch in filter(lambda size: size <= max(len(limits), BATCHES[0]), BATCHES):
            request = requests(len(limits), limits, 3, self.shape["vocab"], batch=batch, stops=stops)
            self.sides[name](request)
            speed[batch] = rate(*self.sides[name](request))
        print(f"{name} in batches: " + ", ".join(f"{b}: {s:,.0f} tokens/s" for b, s in speed.items()), file=sys.stderr)
        return max(speed, key=speed.get)

    def _compare(self, name, request):
        """Tokens a second in turn with each peer; returns {(peer, side): [seconds, …]}."""
        calls = {}
        for side, ask in self.sides.items():  # once for what is compiled
            ask(request(side))
        for seed in range(1, self.runs + 1):  # other draws than those the batches were chosen by
            for peer in self.peers or [None]:
                for side in filter(None, ("jaxalign", peer)):
                    calls.setdefault((peer, side), []).append(self.sides[side](request(side) | {"seed": seed}))
        for peer in self.peers or [None]:
            ours, theirs = ([rate(*call) for call in calls.get((peer, side), [])] for side in ("jaxalign", peer))
            self._row(name, peer, ours, theirs, "tokens/s")
        return {who: [seconds for seconds, _ in made] for who, made in calls.items()}

    def _row(self, name, peer, ours, theirs, unit):
        mine, other = statistics.median(ours), statistics.median(theirs) if theirs else None
        ratio = None if other is None else other / mine if unit == "s" else mine / other
        row = dict(name=f"generate {name} {self.shape['dtype']}", ours=mine, peer=other, peer_name=peer, ratio=ratio,
                   unit=unit, device=self.sides["jaxalign"].device, runs=len(ours))
        self.rows.append(row)

        def said(values):
            if not values:
                return f"{'':>30}"
            digits = 0 if statistics.median(values) > 100 else 3
            spread = f"({min(values):,.{digits}f}–{max(values):,.{digits}f})"
            return f"{statistics.median(values):>12,.{digits}f} {spread:>17}"

        print(f"{row['name']:<32} {said(ours)}   {peer or '':<12} {said(theirs)}  "
              f"{'' if ratio is None else f'{ratio:6.2f}×'}  {unit}", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="a file for the rows")
    parser.add_argument("--peers", default="transformers,tunix", help="which; none if empty")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--runs", type=int, default=5, help="of every comparison")
    parser.add_argument("--first", type=int, default=3, help="fresh processes whose first call is timed")
    parser.add_argument("--work", default="even,ragged,stops", help="which rows")
    for name, size in (("prompts", PROMPTS), ("new", NEW), ("requests", REQUESTS), ("mean", MEAN), ("cap", CAP)):
        parser.add_argument(f"--{name}", type=int, default=size)
    for name in ("vocab", "width", "layers", "heads", "mlp"):
        parser.add_argument(f"--{name}", type=int, default=SHAPE[name])
    given = vars(parser.parse_args(arguments))
    rows = []
    for dtype in given["dtypes"].split(","):
        shape = {name: given.get(name, value) for name, value in SHAPE.items()} | {"dtype": dtype}
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(shape, [peer for peer in given["peers"].split(",") if peer], given["runs"], given["first"],
                          given, pathlib.Path(folder))
            try:
                rows += bench.measure()
            finally:
                bench.close()
    if given["json"]:
        pathlib.Path(given["json"]).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
