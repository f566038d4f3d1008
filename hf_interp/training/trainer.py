"""`InterpolationTrainer`: `transformers.Trainer` with a mixture whose share of domain examples follows α."""

from transformers import Seq2SeqTrainer, Trainer

from hf_interp.training.mixin import InterpolationMixin


class InterpolationTrainer(InterpolationMixin, Trainer):
    """[`~transformers.Trainer`] that takes a mixture as `train_dataset`.

    Example:

    ```python
    trainer = InterpolationTrainer(
        model=model,
        args=InterpolationConfig(output_dir="out", max_steps=1000, alpha_start=0.0, alpha_end=1.0),
        train_dataset={"general": general, "domain": domain},
        eval_dataset={"general": general_test, "domain": domain_test},
        processing_class=tokenizer,
    )
    trainer.train()
    ```
    """


class InterpolationSeq2SeqTrainer(InterpolationMixin, Seq2SeqTrainer):
    """[`~transformers.Seq2SeqTrainer`] that takes a mixture as `train_dataset`."""
