"""The recipe that a network is evaluated with, where its card or its library says so."""

from gdkd_cache.data.recipes.registry import RECIPES
from gdkd_cache.errors import ModelError
from gdkd_cache.schema import short


def stated_recipe(recipe: str | None, name: str) -> str:
    """What makes a network's inputs of evaluation, as its card or its library says: one of our recipes.

    Args:
        recipe: what they say; None, for no word, is `none`.
        name: of the network, for messages.

    Raises:
        ModelError: it says a user's own transform or a file, which only the user may name.
    """
    recipe = recipe or "none"
    if recipe.partition(":")[0] not in RECIPES:
        named = short(recipe)
        raise ModelError(
            f"{name} was evaluated with recipe {named}, which is code, a file or not known here, "
            f"and none that a card may name: if you have it and trust it, name it yourself, with --recipe {named}"
        )
    return recipe
