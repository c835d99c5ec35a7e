"""Train a U-Net on images from scratch; report bits per dimension and the use of the hardware.

    python benchmarks/images.py --data images/cifar10_train10k_test1k.npz --device cuda
    python benchmarks/images.py --quick

The file has the arrays ``X_train`` and ``X_test``, 8-bit, (n, height, width), (n, height, width,
channels) or (n, channels, height, width). Without a file, scikit-learn's 8 x 8 digits are used.
Printed are bits per dimension of the test images (a bound on probabilities of 8-bit pixels) with
its standard error over the images, images per second in training and in scoring (one evaluation of
the network being one image), and which fraction of the throughput of large matrix products, in the
precision that the network uses, these are: forward and backward pass count as three forward passes.
Finished records in the output file are not computed again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from evaluations import evaluations_of_rows
from numpy.typing import NDArray
from results import Record, ResultsFile, format_markdown
from sklearn.datasets import load_digits
from torch.utils.flop_counter import FlopCounterMode
from variational_bound import load_images, with_channels

from sk_itdiffusion import IMMSEDensity

Images = NDArray[np.uint8]
MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
COLUMNS = {
    "bits_per_dim": ("bits/dim", ".3f"),
    "standard_error": ("standard error", ".3f"),
    "training_images_per_second": ("training, images/s", ".0f"),
    "training_fraction": ("of matrix products", ".2f"),
    "scoring_evaluations_per_second": ("scoring, evaluations/s", ".0f"),
    "scoring_fraction": ("of matrix products ", ".2f"),
    "fit_seconds": ("fit, s", ".0f"),
    "score_seconds": ("score, s", ".0f"),
}


def digits() -> tuple[Images, Images]:
    """Return scikit-learn's digits in 8 bits, (n, 1, 8, 8)."""
    images = with_channels(np.rint(load_digits().images * (255 / 16)).astype(np.uint8))
    return images[:1500], images[1500:]


def matrix_flops(device: torch.device) -> float:
    """Return operations per second of large matrix products, the best of several."""
    size = MATRIX_SIZE.get(device.type, 4096)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(8):
        start = now(device)
        for _ in range(4):
            a @ a
        seconds.append((now(device) - start) / 4)
    return 2.0 * size**3 / min(seconds)


def now(device: torch.device) -> float:
    """Return the time when all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def forward_flops(estimator: IMMSEDensity, n_features: int) -> float:
    """Return operations of the network for one image."""
    network = estimator.net_.module_.averaged
    device = next(network.parameters()).device
    z, logsnr = torch.zeros(2, n_features, device=device), torch.zeros(2, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(z, logsnr)
    return counter.get_total_flops() / 2


def epoch_seconds(estimator: IMMSEDensity) -> float:
    """Return the median time of the training part of an epoch, with its validation."""
    return float(np.median(estimator.net_.history[:, "dur"]))


def measure(arguments: argparse.Namespace, X_train: Images, X_test: Images, seed: int) -> Record:
    """Fit, score and return one record."""
    device = torch.device(arguments.device)
    steps, batch_size = (5, 16) if arguments.quick else (arguments.steps, arguments.batch_size)
    estimator = IMMSEDensity(
        image_shape=X_train.shape[1:],
        dequantize=1.0,
        device=arguments.device,
        max_epochs=1 if arguments.quick else arguments.epochs,
        steps_per_epoch=steps,
        batch_size=batch_size,
        hidden_size=8 if arguments.quick else arguments.width,
        random_state=seed,
    )
    start = now(device)
    estimator.fit(X_train)
    fitted = now(device)
    log_p = estimator.score_samples(X_test)
    scored = now(device)
    n_features = int(np.prod(X_train.shape[1:]))
    bits = -log_p / (n_features * np.log(2.0))
    n_evaluations = int(evaluations_of_rows(estimator, X_test).sum())
    peak, flops = matrix_flops(device), forward_flops(estimator, n_features)
    training = steps * batch_size / epoch_seconds(estimator)
    scoring = n_evaluations / (scored - fitted)
    return {
        "bits_per_dim": float(bits.mean()),
        "standard_error": float(bits.std() / np.sqrt(len(bits))),
        "training_images_per_second": training,
        "training_fraction": 3.0 * flops * training / peak,
        "scoring_evaluations_per_second": scoring,
        "scoring_fraction": flops * scoring / peak,
        "fit_seconds": fitted - start,
        "score_seconds": scored - fitted,
        "n_train": len(X_train),
        "n_test": len(X_test),
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="file with X_train and X_test; default: 8 x 8 digits")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200, help="steps of an epoch")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=96, help="channels at full resolution")
    parser.add_argument("--max-test-rows", type=int, default=1000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", help="file of finished records, one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="few rows and steps, as a test")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    arguments = parse_arguments()
    n_train, n_test = (200, 20) if arguments.quick else (None, arguments.max_test_rows)
    if arguments.data is None:
        X_train, X_test = digits()
    else:
        X_train, X_test = load_images(arguments.data, n_train, n_test)
    X_train, X_test = X_train[:n_train], X_test[:n_test]
    results = ResultsFile(arguments.output)
    name = "digits" if arguments.data is None else Path(arguments.data).stem
    setting = (
        f"{arguments.device}, {arguments.epochs} x {arguments.steps} x {arguments.batch_size}, "
        f"width {arguments.width}, {len(X_test)} test images, quick {arguments.quick}"
    )
    body = []
    for seed in arguments.seeds:
        key = {"dataset": name, "seed": seed, "method": "immse", "setting": setting}
        record = results.find(**key)
        if record is None:
            record = results.add({**key, **measure(arguments, X_train, X_test, seed)})
        cells = [format(record[column], style) for column, (_, style) in COLUMNS.items()]
        body.append([name, str(seed), *cells])
    print(format_markdown(["images", "seed", *(title for title, _ in COLUMNS.values())], body))


if __name__ == "__main__":
    main()
