"""What builds a teacher or student from a name and a weights file."""

from gdkd_cache.models.build import build_model as build_model
from gdkd_cache.models.weights import ModelCard as ModelCard
from gdkd_cache.models.weights import load_card as load_card
from gdkd_cache.models.weights import load_model as load_model
from gdkd_cache.models.weights import save_weights as save_weights
