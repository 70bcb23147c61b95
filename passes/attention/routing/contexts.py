"""Contexts that a router learns from: text, text that repeats itself, and recall; and what each loses in a window.

The loss of a context is KL(before || after) in nats a token when every candidate site has a window at once: of the
tokens of text; of what repeats, where it does; of the answers, where recall is asked for. One layer alone would say
less: others make up for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from compiler.compiler_placeholder import x  # noqa
