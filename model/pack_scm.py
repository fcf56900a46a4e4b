"""Takes what a training with LoRA changed, as a released monitor (scripts/pack-scm.sh).

The adapter is rounded to bfloat16, so the figures of a released monitor are those of the model that
scripts/get-scm.sh builds, not those of the training.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.get_scm import ABOUT
from model.options import PackConfig
from model.released import ADAPTER, ADAPTER_CONFIG, assemble, probe
from utils.files import InputError, read_json, sha256_file, write_json
from utils.run_record import read_record, run_folder


def main(config: PackConfig) -> None:
    """Packs the training's best checkpoint.

    Raises:
        InputError: The folder holds no finished training with LoRA.
    """
    trained = Path(config.model_path)
    record = read_record(trained) or {}
    options = record.get("config", {})
    if not options.get("lora_rank") or "best" not in record:
        raise InputError(f"{trained}: holds no finished training with --lora-rank")
    best = trained / f"checkpoint-{record['best']['step']}"
    with run_folder(config) as folder:
        weights = load_file(best / ADAPTER)
        small = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        save_file(small, folder / ADAPTER)
        adapter = read_json(best / ADAPTER_CONFIG)
        write_json(folder / ADAPTER_CONFIG, adapter | {"base_model_name_or_path": config.backbone})
        about = {
            "backbone": config.backbone,
            "heads": {
                "alpha": options["alpha"],
                "logic_weight": options["beta"],
                "token_dropout": options["token_dropout"],
                "first_layers": options.get("first_layers", 0),
            },
            "sha256": {name: sha256_file(folder / name) for name in (ADAPTER, ADAPTER_CONFIG)},
            "training": {
                name: record[name] for name in ("config", "data", "git", "best", "device")
            },
        }
        model = assemble(folder, about, Path(options["base_model_path"]))
        write_json(folder / ABOUT, about | {"probe": probe(*model)})
        megabytes = (folder / ADAPTER).stat().st_size / 1e6
        print(f"adapter: {megabytes:.1f} MB; scripts/get-scm.sh builds the model to test")
