"""`gdkd-cache show`."""

from pathlib import Path

import click

from gdkd_cache.report.options import ShowOptions
from gdkd_cache.terminal import say
from gdkd_cache_cli.options import CachedDataOptions, CacheOptions, RecipeOptions
from gdkd_cache_cli.taking import argument, takes

_PICTURES = (".png", ".jpg", ".jpeg")
_FORMATS = (*_PICTURES, ".html")


@click.command(short_help="Draw some views of a cache with what the teacher said about them.")
@argument("cache")
@takes(data=CachedDataOptions)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The picture (.png, .jpg) or page (.html) to write; another of that name is replaced.",
)
@takes(options=ShowOptions, trust=CacheOptions, recipe=RecipeOptions)
def show(
    cache: str, data: CachedDataOptions, out: Path, options: ShowOptions, trust: CacheOptions, recipe: RecipeOptions
) -> None:
    """Draw a contact sheet, to see that views and logits belong together.

    Each row is an image, left as it was decoded, then as some of its views; under each view are the teacher's five
    likeliest classes, from the cache's logits. Of images with masks, each view has a line: the image, its mask, and the
    teacher's likeliest class of each cell and its confidence, in a picture. The images are checked as for training. A
    page holds its pictures, and needs no network.

    \b
    Examples:
      gdkd-cache show digits.zarr --data digits --out views.png
      gdkd-cache show digits.zarr --data digits --key digits/0007 --views 0,1,2 --out views.html
      gdkd-cache show s3://bucket/digits.zarr --data digits --local-copy kept --out views.png
    """
    if out.suffix.lower() not in _FORMATS:
        raise click.UsageError(f"--out is {str(out)!r}; it must end in {', '.join(_FORMATS)}")

    from gdkd_cache.files import replace_file
    from gdkd_cache.report.show import save_picture, show_page
    from gdkd_cache.report.show import show as run_show

    opened = trust.open(cache, data.local_copy)
    source = data.open()
    known = recipe.opened(source)
    if out.suffix.lower() in _PICTURES:
        picture = run_show(options, opened, source, recipe=known)
        save_picture(picture, out)
        say(f"{out}: {picture.width}x{picture.height} pixels")
    else:
        page = show_page(options, opened, source, recipe=known).encode()
        replace_file(out, page)
        say(f"{out}: a page of {len(page):,} bytes")
