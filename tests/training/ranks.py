"""Several training processes on this machine, forked from one that has imported everything.

    with Ranks() as ranks:
        codes = ranks.run("train", folder, size=2, settings={...})     # exit codes by rank

A job is a function of `JOBS` below, called in each process with the folder, its rank and the arguments. It writes what
a test looks at into the folder; the output of each process goes to `out-RANK`. Whatever hangs is killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.training.server import Server, fork, serve, wait, write_to


class Ranks(Server):
    """The server, as a context."""

    def __init__(self) -> None:
        super().__init__("tests.training.ranks", "-W", "error", TQDM_DISABLE="1")

    def run(
        self,
        job: str,
        folder: Path,
        /,
        *,
        size: int = 2,
        limit: float = 60.0,
        environment: dict[str, str] | None = None,
        **arguments: Any,
    ) -> list[int]:
        """Run a job in so many processes.

        Args:
            job: Its name.
            folder: Where it writes; made if need be.
            size: How many processes; 1 for one that knows of no others.
            limit: Seconds, after which all are killed.
            environment: More variables, such as a launcher sets.
            **arguments: Of the job, in JSON types.

        Returns:
            Exit codes, by rank; minus the signal of which a process died.
        """
        folder.mkdir(parents=True, exist_ok=True)
        answer = self.ask(
            job=job,
            folder=str(folder),
            size=size,
            limit=limit,
            environment=environment or {},
            arguments=arguments,
        )
        self.seconds = answer["seconds"]  # from the first process that ended to the last
        return list(answer["codes"])


def output(folder: Path, rank: int) -> str:
    """What a process has said."""
    return (folder / f"out-{rank}").read_text()


# ---- Jobs: what runs in each process


def train(
    folder: Path,
    rank: int,
    *,
    settings: dict[str, Any],
    output: dict[str, Any] | None = None,
    resume: bool = False,
    dropout: bool = False,
    length: int = 11,
    event: tuple[str, int, int] | None = None,
    clock_offset: float = 0.0,
) -> None:
    """Train the stand-in of the tests; `event` is what happens, in which process and step."""
    import torch
    from torch import nn
    from transformers.trainer_callback import TrainerCallback

    from climafuse.training.callbacks import RunClock
    from climafuse.training.config import RunConfig, read_dataclass
    from climafuse.training.trainer import ClimateTextTrainer
    from tests.training.conftest import Shuffled, StandIn, Windows, collate

    torch.manual_seed(5)
    model = StandIn()
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    base = {
        "steps": 7, "windows_per_step": 4, "warmup_steps": 0, "learning_rate": 0.05, "betas": [0.9, 0.95],
        "gate_learning_rate_scale": 10.0, "logging_interval": 1, "precision": "float32", "evaluation_interval": 3,
    }  # fmt: skip
    out = {"directory": str(folder / "run"), "save_interval": 1000, "tensorboard": False} | (output or {})
    config = read_dataclass(RunConfig, {"training": base | settings, "output": out})
    order: list[Any] = []

    class Windowed(Windows):
        def __getitem__(self, number: int) -> dict[str, Any]:
            sample = super().__getitem__(number)
            if event is not None and event[0] == "nan" and number == event[2]:
                sample["fields"] = sample["fields"] * torch.nan
            return sample

    class Happens(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if event is None or (rank, state.global_step + 1) != tuple(event[1:]):
                return
            if event[0] == "error":
                from climafuse.errors import DataError

                raise DataError("a file", expected="fields", received="none", remedy="Look.")
            if event[0] == "bug":
                raise ZeroDivisionError("of a test")
            if event[0] == "interrupt":
                raise KeyboardInterrupt
            if event[0] == "hang":
                time.sleep(1000)
            elif event[0] in ("SIGTERM", "SIGUSR1", "SIGKILL", "SIGSTOP"):
                os.kill(os.getpid(), getattr(signal, event[0]))

    def record(self: Any, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        order.append([self.state.global_step + 1, inputs["sample"].tolist(), inputs is self._borrowed])
        return real(self, model, inputs, *args, **kwargs)

    real = ClimateTextTrainer.training_step
    ClimateTextTrainer.training_step = record  # type: ignore[method-assign]
    offset = clock_offset * rank
    trainer = ClimateTextTrainer(
        model,
        config,
        train_dataset=Windowed(length),
        eval_dataset=Windows(7, first=100),
        train_loader=torch.utils.data.DataLoader(Windows(5), batch_size=2, collate_fn=collate),
        data_collator=collate,
        sampler=Shuffled(length),
        progress=False,
        callbacks=[Happens()],
        clock=RunClock(lambda: time.monotonic() * (1 + offset)),
    )
    try:
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
    finally:
        from safetensors.torch import save_file

        steps = {"order": order, "step": trainer.state.global_step, "stopped_by": trainer.stopped_by}
        (folder / f"steps-{rank}.json").write_text(json.dumps(steps))
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()},
            folder / f"weights-{rank}.safetensors",
        )


def fully_shard(folder: Path, rank: int, *, cases: list[dict[str, Any]]) -> None:
    """Two steps of a sharded model, beside those of a whole one with the batches of all processes."""
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    from climafuse.model import PrefixStore, SampledVocabulary
    from climafuse.training.config import TrainingConfig
    from climafuse.training.optim import gradient_norms, make_optimizer, trainable_parts
    from climafuse.training.sharding import is_sharded, shard, whole
    from tests.model.build import ANSWERS, PROMPTS, make_model, make_processor, random_window

    # Nobody writes into what a module has returned; that gradients arrive is what is tested.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor")
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    told = []
    for case in cases:
        case = dict(case)
        store, sampled = case.pop("store", False), case.pop("sampled", False)
        dtype = getattr(torch, case.pop("dtype", "float32"))
        models = [make_model(dtype=dtype, **case).train() for _ in range(2)]
        processor = make_processor(models[0])
        batches = [
            processor(
                [random_window(2 * number), random_window(2 * number + 1)], list(PROMPTS), list(ANSWERS)
            )
            for number in range(distributed.get_world_size())
        ]
        for model in models:
            if store:
                model.prefix_store = PrefixStore(model.backbone, model.prefix_site)
                texts = [tuple(row[mask.bool()].tolist()) for batch in batches
                         for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]  # fmt: skip
                model.prefix_store.add(texts)
            if sampled:
                tokens = torch.cat([batch["input_ids"].flatten() for batch in batches])
                model.sampled_vocabulary = SampledVocabulary(tokens, model._vocabulary, 16)
        reference, sharded = models[0], shard(models[1], mesh)
        assert is_sharded(sharded)
        assert not is_sharded(reference)
        settings = TrainingConfig(learning_rate=0.01)
        optimizers = [make_optimizer(model, settings) for model in models]
        for _ in range(2):
            torch.manual_seed(1)
            outputs = []
            for batch in batches:
                torch.manual_seed(1)
                outputs.append(reference(**batch))
            torch.stack([output.loss for output in outputs]).mean().backward()
            torch.manual_seed(1)
            output = sharded(**batches[rank])
            output.loss.backward()
            gaps = {"loss": abs(output.loss.item() - outputs[rank].loss.item())}
            gaps["logits"] = (output.logits - outputs[rank].logits).abs().max().item()
            own = dict(sharded.named_parameters())
            gradients = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
            assert gradients.keys() == {name for name, p in own.items() if p.grad is not None}
            gaps["gradients"] = max(
                (whole(own[name].grad) - g).abs().max().item() for name, g in gradients.items()
            )
            gaps["size"] = max(g.abs().max().item() for g in gradients.values())
            norms = [gradient_norms(trainable_parts(model))[1] for model in models]
            gaps["norm"] = abs(norms[0].item() / norms[1].item() - 1)
            for optimizer, norm in zip(optimizers, norms, strict=True):
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                torch.nn.utils.clip_grads_with_norm_(parameters, 0.5 * norm.item(), norm)
                optimizer.step()
                optimizer.zero_grad()
            weights = {name: whole(tensor) for name, tensor in sharded.trainable_state_dict().items()}
            expected = reference.trainable_state_dict()
            assert weights.keys() == expected.keys()
            gaps["weights"] = max((weights[name] - expected[name]).abs().max().item() for name in expected)
            told.append(gaps)
    if rank == 0:
        (folder / "gaps.json").write_text(json.dumps(told))


def round_sharded(folder: Path, rank: int) -> None:
    """Fine-tune a sharded model in bfloat16; each update beside AdamW's in float32 from the same gathered weights."""
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    from climafuse.training.config import TrainingConfig
    from climafuse.training.optim import make_optimizer
    from climafuse.training.sharding import shard, whole
    from tests.model.build import ANSWERS, PROMPTS, make_model, make_processor, random_window

    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor")
    distributed.init_process_group("gloo")
    model = make_model(dtype=torch.bfloat16, backbone_trainable="all").train()
    windows = [random_window(2 * rank), random_window(2 * rank + 1)]
    batch = make_processor(model)(windows, list(PROMPTS), list(ANSWERS))
    shard(model, init_device_mesh("cpu", (distributed.get_world_size(),)))
    optimizer = make_optimizer(model, TrainingConfig(learning_rate=0.01))
    torch.manual_seed(rank)
    names = {parameter: name for name, parameter in model.named_parameters()}
    twins = {parameter: torch.nn.Parameter(whole(parameter.detach()).float()) for parameter in names
             if parameter.requires_grad}  # fmt: skip
    groups = [{**group, "params": [twins[p] for p in group["params"]]} for group in optimizer.param_groups]
    reference = torch.optim.AdamW(groups, fused=True)
    told = []
    for _ in range(3):
        model(**batch).loss.backward()
        with torch.no_grad():
            for parameter, twin in twins.items():
                twin.copy_(whole(parameter.detach()))
                twin.grad = whole(parameter.grad).float()
        optimizer.step()
        optimizer.zero_grad()
        reference.step()
        for parameter, twin in twins.items():
            value, expected = whole(parameter.detach()), twin.detach()
            moments = (whole(optimizer.state[parameter][key]) for key in ("exp_avg", "exp_avg_sq"))
            others = (reference.state[twin][key] for key in ("exp_avg", "exp_avg_sq"))
            told.append({
                "name": names[parameter],
                "dtype": str(value.dtype).removeprefix("torch."),
                "rows": [len(parameter.to_local()), len(value)],
                "moments": max(((own - other).abs().max() / other.abs().max()).item()
                               for own, other in zip(moments, others, strict=True)),
                "neighbors": ((value.float() - expected).abs() / (expected.abs() * 2**-7 + 1e-30)).max().item(),
                "error": ((value.float() - expected).sum() / ((value.float() - expected).norm() + 1e-30)).item(),
            })  # fmt: skip
    (folder / f"told-{rank}.json").write_text(json.dumps(told))


def train_sharded(
    folder: Path, rank: int, *, resume: bool = False, steps: int = 6, sharded: bool = True
) -> None:
    """Train a tiny model whose weights are spread, as accelerate spreads them on GPUs: it does not on processors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.utils.data import Dataset

    from climafuse.training.config import RunConfig, read_dataclass
    from climafuse.training.optim import make_optimizer
    from climafuse.training.sharding import shard
    from climafuse.training.trainer import ClimateTextTrainer
    from tests.model.build import ANSWERS, PROMPTS, make_model, make_processor, random_window

    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor")
    model = make_model()
    processor = make_processor(model)

    class Numbers(Dataset[int]):
        def __len__(self) -> int:
            return 7

        def __getitem__(self, number: int) -> int:
            return number

    def collate(numbers: list[int]) -> dict[str, Any]:
        texts = [number % 2 for number in numbers]
        prompts, answers = [PROMPTS[text] for text in texts], [ANSWERS[text] for text in texts]
        return dict(processor([random_window(number) for number in numbers], prompts, answers))

    content = {
        "training": {"steps": steps, "windows_per_step": 4, "warmup_steps": 0, "learning_rate": 0.01,
                     "logging_interval": 1, "evaluation_interval": 3, "accumulation": 2, "precision": "float32"},
        "output": {"directory": str(folder / "run"), "save_interval": 3, "tensorboard": False},
    }  # fmt: skip
    config = read_dataclass(RunConfig, content)
    trainer = ClimateTextTrainer(
        model, config, train_dataset=Numbers(), eval_dataset=Numbers(), data_collator=collate, progress=False
    )

    def prepare(model: Any, optimizer: Any) -> tuple[Any, Any]:
        shard(model, init_device_mesh("cpu", (2,)))
        return model, make_optimizer(model, trainer.settings)

    if sharded:
        trainer.accelerator.prepare = prepare
        load = trainer._load_from_checkpoint
        wrap = trainer._prepare_for_training

        def loaded_after(*args: Any, **kwargs: Any) -> Any:  # as the Trainer does where weights are spread
            prepared = wrap(*args, **kwargs)
            if resume:
                load(trainer._resumed["folder"])
            return prepared

        trainer._prepare_for_training = loaded_after  # type: ignore[method-assign]
        trainer._load_from_checkpoint = (  # type: ignore[method-assign]
            lambda path, model=None: trainer._resumed.update(folder=path)
        )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()


def command(folder: Path, rank: int, *, arguments: list[str]) -> None:
    """The command line."""
    from climafuse.cli import app

    sys.argv = ["climafuse", *arguments]
    app.main()


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job for job in (train, fully_shard, round_sharded, train_sharded, command)
}


# ---- The server


def _work(call: dict[str, Any], rank: int, port: int) -> None:
    from climafuse.errors import ClimafuseError

    folder, size = Path(call["folder"]), call["size"]
    (folder / f"out-{rank}").unlink(missing_ok=True)
    for descriptor in (1, 2):
        write_to(descriptor, folder / f"out-{rank}")
    os.environ |= call["environment"]
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        warnings.simplefilter("ignore")  # DeepSpeed and what it imports warn of themselves
    if size > 1:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    try:
        JOBS[call["job"]](folder, rank, **call["arguments"])
    except ClimafuseError as error:
        print(f"{'' if error.told else 'error: '}{error}", flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _answer(call: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [fork(partial(_work, call, rank, port)) for rank in range(call["size"])]
    codes, seconds = wait(children, call["limit"])
    return {"codes": codes, "seconds": seconds}


if __name__ == "__main__":
    from transformers.models.llama import modeling_llama  # noqa: F401

    import tests.training.conftest  # noqa: F401

    serve(_answer)
