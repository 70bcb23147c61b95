"""Options of commands that generate text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from compiler.runtime.generation.sampling import SamplingOptions

GENERATION_GROUP = Group("Text from a language model", sort_key=1)


@Parameter(name="*", group=GENERATION_GROUP)
@dataclass(frozen=True)
class GenerationOptions:
    """Prompts, and how they are continued."""

    prompt: Annotated[
        tuple[str, ...],
        Parameter(allow_leading_hyphen=True, help="What to answer; - reads it from standard input; may be repeated."),
    ] = ()
    system: Annotated[str | None, Parameter(help="A system message before every prompt.")] = None
    raw: Annotated[bool, Parameter(help="Continue the prompt as it is, without the model's chat template.")] = False
    max_tokens: Annotated[
        int,
        Parameter(name=["--max-tokens", "--max-new-tokens"], help="The most new tokens of a text; 256 if left out."),
    ] = 256
    temperature: Annotated[float, Parameter(help="Above 0: draw the tokens; 0 takes the likeliest.")] = 0.0
    top_k: Annotated[int | None, Parameter(help="Draw from so many likeliest tokens.")] = None
    top_p: Annotated[float, Parameter(help="Draw from the likeliest tokens that reach this probability together.")] = (
        1.0
    )
    min_p: Annotated[float, Parameter(help="Leave out tokens below this share of the likeliest one's probability.")] = (
        0.0
    )
    repetition_penalty: Annotated[float, Parameter(help="Above 1: make tokens that came before less likely.")] = 1.0
    stop: Annotated[tuple[str, ...], Parameter(help="End before this text; may be repeated.")] = ()
    seed: Annotated[int | None, Parameter(help="The same seed draws the same tokens.")] = None
    speculate: Annotated[
        int, Parameter(help="Draft so many tokens from the text itself and check them in one call.")
    ] = 0

    def sampling(self) -> SamplingOptions:
        """As the runtime takes them. Raises CompilerError for values that cannot be."""
        from compiler.runtime.generation.sampling import SamplingOptions

        return SamplingOptions(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop=self.stop,
            seed=self.seed,
        )


NO_GENERATION = GenerationOptions()
