"""`gdkd-cache show`."""

from pathlib import Path

import click

from gdkd_cache_cli.options import DATA_HELP

_FORMATS = (".png", ".jpg", ".jpeg")


@click.command(short_help="Draw some views of a cache with what the teacher said about them.")
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="SPEC", help=f"The images that the cache was built from. {DATA_HELP}")
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The picture to write, .png or .jpg; another of that name is replaced.",
)
@click.option("--rows", default=6, show_default=True, help="Images, spread evenly over the data; at most 64.")
@click.option("--key", "keys", multiple=True, help="Show the image of this key instead; may be repeated.")
@click.option("--views", default=None, metavar="V,V,...", help="Which views, at most 16. [default: the first four]")
@click.option("--temperature", default=1.0, show_default=True, help="Of the probabilities shown.")
@click.option("--digest", default=None, metavar="sha256:...", help="Refuse any other cache.")
@click.option(
    "--recipe",
    default=None,
    metavar="SPEC",
    help="The recipe of the cache's views, where it is a compat: one; another is refused.",
)
def show(
    cache: Path,
    data: str,
    out: Path,
    rows: int,
    keys: tuple[str, ...],
    views: str | None,
    temperature: float,
    digest: str | None,
    recipe: str | None,
) -> None:
    """Draw a contact sheet, to see that views and logits belong together.

    Each row is an image, left as it was decoded, then as some of its views; under each view are the teacher's five
    likeliest classes, from the cache's logits. The images are checked as for training.

    \b
    Examples:
      gdkd-cache show digits.zarr --data digits --out views.png
      gdkd-cache show digits.zarr --data digits --key digits/0007 --views 0,1,2 --out views.png
    """
    if out.suffix.lower() not in _FORMATS:
        raise click.UsageError(f"--out is {str(out)!r}; it must end in {', '.join(_FORMATS)}")
    try:
        numbers = None if views is None else [int(text) for text in views.split(",")]
    except ValueError:
        raise click.UsageError(f"--views is {views!r}; it must be numbers such as 0,1,2") from None

    from gdkd_cache import open_cache, open_source
    from gdkd_cache.data.recipes.presets import open_recipe
    from gdkd_cache.data.views import image_size
    from gdkd_cache.report.show import ShowOptions, save_picture
    from gdkd_cache.report.show import show as run_show

    options = ShowOptions(rows=rows, keys=keys, views=numbers, temperature=temperature)
    opened = open_cache(cache, digest=digest)
    source = open_source(data)
    named = None if recipe is None else open_recipe(recipe, *image_size(source))
    picture = run_show(options, opened, source, recipe=named)
    save_picture(picture, out)
    click.echo(f"{out}: {picture.width}x{picture.height} pixels")
