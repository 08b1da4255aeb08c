"""`gdkd-cache average`."""

from pathlib import Path

import click

from gdkd_cache.terminal import say


@click.command(short_help="The mean of several weights of one network.")
@click.argument("weights", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .safetensors file to write.")
@click.option("--force", is_flag=True, help="Replace a file of that name.")
def average(weights: tuple[Path, ...], out: Path, force: bool) -> None:
    """Write the mean of WEIGHTS, which are of one network, such as of the last epochs of a training, with their card.

    The running statistics of BatchNorm are averaged too: they are those of none of the networks, and of the mean only
    where the weights lie close together, as late epochs of one training do. Evaluate what comes out. Weights of
    trainings that began apart have no useful mean.

    \b
    Example:
      gdkd-cache average student/epoch-0007.safetensors student/epoch-0008.safetensors --out mean.safetensors
    """
    from gdkd_cache.errors import UsageError
    from gdkd_cache.files import replace_file, require_free
    from gdkd_cache.models.average import average as run_average
    from gdkd_cache.models.weights import encode_weights

    require_free(out, force=force)
    if out.suffix != ".safetensors":
        raise UsageError(f"out is {str(out)!r}; the name of a file of weights ends in .safetensors")
    tensors, card = run_average(weights)
    replace_file(out, encode_weights(tensors, card))
    say(f"{out}: the mean of {len(weights)} weights of {card.name}")
