"""One table of what a task is, for training, cards, adapters and the page alike. No torch.

`hf_interp.tasks.task.TASKS` says how each of them is trained. A task that is put in there brings its entry here.
"""

from dataclasses import dataclass
from typing import Literal

MASK = "[MASK]"
"""Stands for the mask of any tokenizer in a text."""

AnswerKind = Literal["label", "tags", "masks", "continuation", "text"]
InputKind = Literal["text", "image", "audio", "image-text"]

PROCESSORS: dict[InputKind, str] = {
    "text": "AutoTokenizer",
    "image": "AutoImageProcessor",
    "audio": "AutoFeatureExtractor",
    "image-text": "AutoProcessor",
}
"""Name of the transformers auto class that makes a model's inputs, by what these are made of."""
COMPONENTS: dict[InputKind, str] = {"text": "Textbox", "image": "Image", "audio": "Audio"}
"""Name of the component of Gradio by which the page takes one of them."""


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """Facts about a task that need no training code."""

    auto_class: str
    """Name of the transformers auto class."""
    encoder_class: str | None = None
    """That of models without a decoder, if the task has models with one and without."""
    pipeline_tag: str | None = None
    """The Hub's name for the task, if it has one."""
    peft_type: str | None = None
    """PEFT's name for the task, if it has one."""
    class_endings: tuple[str, ...] = ()
    """Ends of the names of its model classes, by which the task of a checkpoint is known; the longest that fits counts.
    Of tasks that share their classes, one has them."""
    takes: InputKind = "text"
    """What a model's inputs are made of."""
    answer: AnswerKind | None = None
    """What a model gives for an input, and the page and the card's snippet ask for: a `label` of the whole, `tags` of
    the words of a text, tokens for its `masks`, its `continuation`, or another `text`. Without one the page cannot show
    it."""
    examples: tuple[str, ...] = ()
    """Texts to try on the page, where a run has none."""

    @property
    def has_labels(self) -> bool:
        """Whether the head chooses among labels, of a whole input or of the words of a text."""
        return self.answer in ("label", "tags")

    @property
    def converses(self) -> bool:
        """Whether a model goes on from texts with images among them."""
        return self.takes == "image-text" and self.answer == "continuation"

    @property
    def processor(self) -> str:
        """Name of the transformers auto class of its tokenizer, image processor or feature extractor, or of two."""
        return "AutoProcessor" if self.takes != "text" and self.answer == "text" else PROCESSORS[self.takes]

    def class_of(self, *, has_decoder: bool) -> str:
        """Return the name of the auto class of a model."""
        return self.auto_class if has_decoder else self.encoder_class or self.auto_class


SPEECH_ENCODERS = (
    *("Data2VecAudio", "Hubert", "SEW", "SEWD", "UniSpeech", "UniSpeechSat"),
    *("Wav2Vec2", "Wav2Vec2Bert", "Wav2Vec2Conformer", "WavLM"),
)
"""Models whose classifiers of sound are called as those of texts are."""

IMAGE_CHATS = (
    *("AyaVision", "Cohere2Vision", "Glm4v", "Idefics2", "Idefics3", "InternVL", "Llama4"),
    *("Llava", "LlavaNext", "LlavaOnevision", "Mistral3", "Ovis2", "PaliGemma"),
    *("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe", "SmolVLM"),
)
"""Models that go on from images among texts, and are called as encoder-decoders are."""

TASK_INFOS: dict[str, TaskInfo] = {
    "sequence-classification": TaskInfo(
        auto_class="AutoModelForSequenceClassification",
        pipeline_tag="text-classification",
        peft_type="SEQ_CLS",
        class_endings=("ForSequenceClassification",),
        answer="label",
        examples=(
            "A quiet start, and then it does not let go of you until the very end.",
            "The company's operating profit fell to 2.1 million euros from 3.4 million a year earlier.",
            "Nobody at the desk could say when the next flight would leave.",
        ),
    ),
    "token-classification": TaskInfo(
        auto_class="AutoModelForTokenClassification",
        pipeline_tag="token-classification",
        peft_type="TOKEN_CLS",
        class_endings=("ForTokenClassification",),
        answer="tags",
        examples=(
            "Maria Keller moved from Geneva to Oslo to work for the Red Cross.",
            "On Monday the Bank of Japan kept its interest rate at 0.5 percent.",
        ),
    ),
    "translation": TaskInfo(
        auto_class="AutoModelForSeq2SeqLM",
        pipeline_tag="translation",
        peft_type="SEQ_2_SEQ_LM",
        answer="text",
        examples=("The train leaves at nine.", "Please read the instructions before you begin."),
    ),
    "summarization": TaskInfo(
        auto_class="AutoModelForSeq2SeqLM",
        pipeline_tag="summarization",
        peft_type="SEQ_2_SEQ_LM",
        answer="text",
        examples=(
            "The council met on Tuesday to discuss the new bridge. After two hours it agreed to build it by next "
            "summer, at a cost of four million, half of which the state will pay. The old bridge will stay open until "
            "then.",
        ),
    ),
    "seq2seq": TaskInfo(
        auto_class="AutoModelForSeq2SeqLM",
        peft_type="SEQ_2_SEQ_LM",
        class_endings=("ForConditionalGeneration", "ForTextToText", "MarianMTModel", "EncoderDecoderModel"),
        answer="text",
        examples=("The council met on Tuesday and agreed to build the new bridge by next summer.",),
    ),
    "causal-lm": TaskInfo(
        auto_class="AutoModelForCausalLM",
        pipeline_tag="text-generation",
        peft_type="CAUSAL_LM",
        class_endings=(
            "ForCausalLM",
            "LMHeadModel",
            "ReformerModelWithLMHead",
            "BertGenerationDecoder",
            "Gemma3ForConditionalGeneration",
            "Gemma3nForConditionalGeneration",
            "Gemma4ForConditionalGeneration",
            "Gemma4UnifiedForConditionalGeneration",
            "GotOcr2ForConditionalGeneration",
        ),
        answer="continuation",
        examples=(
            "The weather in the north will be",
            "The court held that the contract was",
            "The patient was given",
        ),
    ),
    "chat": TaskInfo(
        auto_class="AutoModelForCausalLM",
        pipeline_tag="text-generation",
        peft_type="CAUSAL_LM",
        answer="continuation",
        examples=("What can you help me with?", "Explain in two sentences what interest is."),
    ),
    "masked-lm": TaskInfo(
        auto_class="AutoModelForMaskedLM",
        pipeline_tag="fill-mask",
        class_endings=("ForMaskedLM", "FlaubertWithLMHeadModel", "XLMWithLMHeadModel"),
        answer="masks",
        examples=(
            f"The capital of Norway is {MASK}.",
            f"The patient was treated with {MASK} for two weeks.",
            f"The court {MASK} the appeal.",
        ),
    ),
    "image-classification": TaskInfo(
        auto_class="AutoModelForImageClassification",
        pipeline_tag="image-classification",
        class_endings=(
            "ForImageClassification",
            *(f"ForImageClassification{kind}" for kind in ("WithTeacher", "Learned", "Fourier", "ConvProcessing")),
        ),
        takes="image",
        answer="label",
    ),
    "image-text": TaskInfo(
        auto_class="AutoModel",
        pipeline_tag="zero-shot-image-classification",
        class_endings=("CLIPModel", "SiglipModel", "Siglip2Model", "MetaClip2Model", "VisionTextDualEncoderModel"),
        takes="image-text",
    ),
    "image-to-text": TaskInfo(
        auto_class="AutoModelForImageTextToText",
        pipeline_tag="image-to-text",
        class_endings=("VisionEncoderDecoderModel",),
        takes="image-text",
        answer="text",
    ),
    "image-text-to-text": TaskInfo(
        auto_class="AutoModelForImageTextToText",
        pipeline_tag="image-text-to-text",
        class_endings=tuple(f"{kind}ForConditionalGeneration" for kind in IMAGE_CHATS),
        takes="image-text",
        answer="continuation",
    ),
    "audio-classification": TaskInfo(
        auto_class="AutoModelForAudioClassification",
        pipeline_tag="audio-classification",
        class_endings=("ForAudioClassification", *(f"{kind}ForSequenceClassification" for kind in SPEECH_ENCODERS)),
        takes="audio",
        answer="label",
    ),
    "automatic-speech-recognition": TaskInfo(
        auto_class="AutoModelForSpeechSeq2Seq",
        encoder_class="AutoModelForCTC",
        pipeline_tag="automatic-speech-recognition",
        class_endings=(
            *("ForCTC", "ForSpeechToText", "SpeechEncoderDecoderModel"),
            *(
                f"{kind}ForConditionalGeneration"
                for kind in ("Whisper", "Speech2Text", "Moonshine", "MoonshineStreaming")
            ),
        ),
        takes="audio",
        answer="text",
    ),
}
"""By task. seq2seq has no name of its own on the Hub."""

OTHER_ADAPTERS = {"QUESTION_ANS": "AutoModelForQuestionAnswering", "FEATURE_EXTRACTION": "AutoModel"}
"""PEFT's names for tasks that are not trained here → the auto class that their adapters are for."""


def task_of_class(model_class: str) -> str | None:
    """Return the task of a model class by the end of its name."""
    found = [
        (len(ending), name)
        for name, info in TASK_INFOS.items()
        for ending in info.class_endings
        if model_class.endswith(ending)
    ]
    return max(found)[1] if found else None


def task_of_adapter(peft_type: str | None) -> str | None:
    """Return the task that an adapter's configuration names; of several, the one that has the model classes."""
    found = [name for name, info in TASK_INFOS.items() if info.peft_type == peft_type is not None]
    return max(found, key=lambda name: len(TASK_INFOS[name].class_endings), default=None)


def adapter_classes() -> dict[str, str]:
    """Return PEFT's names for tasks with the auto classes that their adapters are for."""
    trained = {info.peft_type: info.auto_class for info in TASK_INFOS.values() if info.peft_type is not None}
    return OTHER_ADAPTERS | trained
