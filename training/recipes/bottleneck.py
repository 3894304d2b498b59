"""`medley train bottleneck`: small networks inside the blocks of the frozen base.

They are trained and measured here for comparison; the result says that Medley does not serve it.

Source: Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247.
"""

from __future__ import annotations

from training.base_model import load_base
from training.bottleneck import add_bottlenecks
from training.config import AdapterRecipe
from training.methods import BottleneckMethod
from training.recipes.adaptation import Prepared
from training.recipes.forms import BottleneckForm


def prepare_bottleneck(recipe: AdapterRecipe[BottleneckMethod]) -> Prepared:
    """Put the networks into the base.

    Raises:
        TrainingConfigError: no such base, or none of its layers has a known name.
    """
    base, method = load_base(recipe.base), recipe.method
    add_bottlenecks(base.model, method.width, method.after)
    where = "attention and feed-forward" if method.after == "both" else "feed-forward"
    about = f"bottleneck adapters {method.width} wide, after {where}; not served by Medley"
    return Prepared(base, base.model, BottleneckForm(base, method.width, method.after), about)
