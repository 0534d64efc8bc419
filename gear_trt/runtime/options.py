"""What a caller may ask of a generation, by the names of transformers' `GenerationConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Self, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic import ValidationError as PydanticValidationError

from gear_trt.errors import ErrorCode, GearError


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str | int) else value


class GenerationKeywords(TypedDict, total=False):
    """Keyword arguments of `Engine.stream` and `Engine.generate`: see `GenerationOptions`."""

    max_new_tokens: int
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str]
    eos_token_id: int | Sequence[int] | None


class GenerationOptions(BaseModel):
    """Checked options of one generation; None leaves a filter out.

    Attributes:
        max_new_tokens: Tokens to generate at most.
        do_sample: Draw at random; None means yes where a sampling option is set, and else the most
            likely token is taken.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Keep the k most likely tokens.
        top_p: Keep the most likely tokens that make up this probability.
        min_p: Keep tokens at least this likely, as a fraction of the most likely one.
        repetition_penalty: Above 1, makes tokens of prompt and answer less likely.
        seed: Makes sampling repeatable.
        stop: Strings that end the text; they are not part of it.
        eos_token_id: Tokens that end the text; None means the model's own, () means none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1)], ...], BeforeValidator(_as_tuple)
    ] = ()
    eos_token_id: Annotated[tuple[int, ...] | None, BeforeValidator(_as_tuple)] = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        if self.temperature == 0:
            return False
        if self.do_sample is not None:
            return self.do_sample
        filters = (self.temperature, self.top_k, self.top_p, self.min_p)
        return any(value is not None for value in filters)

    @classmethod
    def checked(cls, keywords: Mapping[str, object]) -> Self:
        """Build options from a caller's keywords.

        Raises:
            GearError: `BAD_REQUEST`, naming every wrong option.
        """
        try:
            return cls.model_validate(keywords)
        except PydanticValidationError as error:
            faults = [f"{item['loc'][0]}: {item['msg']}" for item in error.errors()]
            raise GearError(
                ErrorCode.BAD_REQUEST,
                "the generation options are not valid: " + "; ".join(faults),
                hint=f"the options are {', '.join(cls.model_fields)}",
            ) from None
