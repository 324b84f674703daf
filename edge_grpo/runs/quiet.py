"""What libraries say of things that are meant to be as they are."""

import logging
import warnings

import transformers

HUB = "huggingface_hub"
RETRIES = ("thrown while requesting", "Retrying in", "Rate limited")


class ToldOnce(logging.Filter):
    """Of the model hub's many lines about one failure after the other the first passes, in words."""

    def __init__(self) -> None:
        super().__init__()
        self._told = False

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if not any(part in text for part in RETRIES):
            return True
        told, self._told = self._told, True
        reason = text.partition(" thrown while")[0].strip("'")
        record.args = ()
        record.msg = (
            f"the model hub does not answer ({reason}): trying again, half a minute for each file; HF_HUB_OFFLINE=1 "
            "takes the files that are here at once"
        )
        return not told


def silence_expected_warnings() -> None:
    """Silence libraries where they warn of what this project does on purpose, or say one thing many times."""
    hub = logging.getLogger(HUB)
    hub.handlers.clear()  # it has told the root logger too
    requests = logging.getLogger(f"{HUB}.utils._http")
    for old in [known for known in requests.filters if isinstance(known, ToldOnce)]:
        requests.removeFilter(old)
    requests.addFilter(ToldOnce())
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`training_step` returned `None`.*")
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # An iteration whose groups are all dropped takes no optimiser step, but the schedule goes on.
    warnings.filterwarnings("ignore", message=".*`lr_scheduler.step.+ before `optimizer.step.*")
    # peft 0.21 asks a model by the old name whether it checkpoints activations.
    warnings.filterwarnings("ignore", message=".*`is_gradient_checkpointing` is deprecated.*")
