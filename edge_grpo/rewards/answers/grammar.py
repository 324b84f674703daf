r"""math-verify's grammar of LaTeX, with what stands side by side as a product."""

from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy

_CONFIG = ConversionConfig(interpret_as_mixed_fractions=False, interpret_contains_as_eq=False, lowercase_symbols=False)


class _Grammar(_Latex2Sympy):
    def convert_postfix_list(self, arr: Any, i: int = 0) -> Any:
        """Factors side by side; the library adds two numbers (`2(7)` is 9), whatever its configuration says."""
        value = self.convert_postfix(arr[i])
        if i == len(arr) - 1:
            if isinstance(value, list):
                raise ValueError("a derivative of nothing")
            return value
        rest = self.convert_postfix_list(arr, i + 1)
        if isinstance(value, list):  # d/dx
            return sympy.Derivative(rest, value[0])
        return self.mul_flat(value, rest)


def sympy_of(text: str) -> Any:
    r"""What the LaTeX says, in SymPy and mostly unevaluated.

    Raises:
        Exception: of any kind, where the grammar refuses the text.

    >>> sympy_of("2(7)").doit(), sympy_of(r"2\binom{5}{2}").doit(), sympy_of(r"2\frac{1}{2}").doit()
    (14, 20, 1)
    """
    return _Grammar(config=_CONFIG).parse(text)
