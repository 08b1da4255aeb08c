"""The steps and the recipes that have a name: one line each. Reading the names loads neither torch nor torchvision."""

from typing import TYPE_CHECKING

from gdkd_cache.registry import Entry, Registry

if TYPE_CHECKING:
    from gdkd_cache.data.recipes.presets import Preset
    from gdkd_cache.data.recipes.step import Step

_HERE = "gdkd_cache.data.recipes"

STEPS: Registry["type[Step]"] = Registry(
    "step",
    {
        "random_crop": Entry(f"{_HERE}.geometry:RandomCrop", "pad, then crop a square at a random offset"),
        "random_resized_crop": Entry(f"{_HERE}.geometry:RandomResizedCrop", "resize a random box to a square"),
        "resize": Entry(f"{_HERE}.geometry:Resize", "resize to a square"),
        "resize_center_crop": Entry(f"{_HERE}.geometry:ResizeCenterCrop", "resize, then crop the central square"),
        "resize_to": Entry(f"{_HERE}.scaling:ResizeTo", "resize to a rectangle"),
        "scale_crop": Entry(f"{_HERE}.scaling:ScaleCrop", "scale at random, then crop a rectangle at a random offset"),
        "horizontal_flip": Entry(f"{_HERE}.geometry:HorizontalFlip", "mirror"),
        "color_jitter": Entry(f"{_HERE}.colour:ColorJitter", "change brightness, contrast, saturation and hue"),
        "grayscale": Entry(f"{_HERE}.colour:RandomGrayscale", "replace the colours by their luma"),
        "gaussian_blur": Entry(f"{_HERE}.colour:GaussianBlur", "blur"),
        "solarize": Entry(f"{_HERE}.colour:Solarize", "invert the values above a threshold"),
        "posterize": Entry(f"{_HERE}.colour:Posterize", "keep the upper bits of every value"),
        "equalize": Entry(f"{_HERE}.colour:Equalize", "flatten the histogram of every channel"),
        "autocontrast": Entry(f"{_HERE}.colour:AutoContrast", "stretch every channel to the whole range"),
        "auto_augment": Entry(f"{_HERE}.policies:AutoAugment", "one of 25 learned pairs of operations"),
        "rand_augment": Entry(f"{_HERE}.policies:RandAugment", "a few random operations at one magnitude"),
        "trivial_augment_wide": Entry(f"{_HERE}.policies:TrivialAugmentWide", "one operation at a random magnitude"),
        "augmix": Entry(f"{_HERE}.policies:AugMix", "chains of operations, blended with the image"),
        "random_erasing": Entry(f"{_HERE}.erasing:RandomErasing", "blank a random box"),
        "cutout": Entry(f"{_HERE}.erasing:Cutout", "blank a square around a random pixel"),
    },
    base=f"{_HERE}.step:Step",
)

RECIPES: Registry["type[Preset]"] = Registry(
    "recipe",
    {
        "none": Entry(f"{_HERE}.presets:Nothing", "images as they are"),
        "resize": Entry(f"{_HERE}.presets:Resized", "images as squares"),
        "crop": Entry(f"{_HERE}.presets:Crop", "padded crops"),
        "crop-flip": Entry(f"{_HERE}.presets:CropFlip", "padded crops and flips, as for CIFAR"),
        "cifar-strong": Entry(f"{_HERE}.presets:CifarStrong", "crop-flip with AutoAugment and Cutout"),
        "imagenet": Entry(f"{_HERE}.presets:ImageNet", "random resized crops and flips"),
        "imagenet-randaug": Entry(f"{_HERE}.presets:ImageNetRandAug", "imagenet with RandAugment"),
        "resize-to": Entry(f"{_HERE}.presets:ResizedTo", "images as rectangles of one size"),
        "scale-crop": Entry(f"{_HERE}.presets:ScaleCropFlip", "random scales, crops and flips, as for Cityscapes"),
        "imagenet-eval": Entry(f"{_HERE}.presets:ImageNetEval", "the central square, as networks are evaluated"),
    },
    base=f"{_HERE}.presets:Preset",
)
