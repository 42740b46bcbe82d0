"""The language model of a published model that sees pictures too: its part of config.json and its tensors, by their own names."""

from jaxalign.errors import ConfigError

FAMILIES = {"gemma3": "gemma3_text", "mistral3": "mistral"}  # model_type of the whole: of its language model
ALSO_OUTSIDE = ("torch_dtype", "dtype", "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id",
                "tie_word_embeddings")
# How names begin: as files have them, as the language model alone has them; in the order in which they are tried.
NAMES = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.", "model.language_model.": "model.",
         "lm_head.": "lm_head."}
OTHERS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def language_part(config, files, where):
    """(config.json, tensors) of the language model in one that sees; any other stays as it is.

    Args:
      config: config.json, a dict.
      files: as `parameters.Source` takes them.
      where: of errors.
    Raises:
      ConfigError: a text_config that is none.
    """
    if str(config.get("model_type")) not in FAMILIES or "text_config" not in config:
        return config, files
    text = config["text_config"]
    if not isinstance(text, dict):
        raise ConfigError(f"{where}: text_config={text!r}; expected the config of the language model")
    outside, files = {key: config[key] for key in ALSO_OUTSIDE if key in config}, Part(files)
    text = {key: value for key, value in text.items() if key != "architectures"}
    if "lm_head.weight" not in files.names:  # which of both configs says so differs from one version of transformers to the next
        text["tie_word_embeddings"] = True
    return {"model_type": FAMILIES[config["model_type"]]} | outside | text, files


class Part:
    """Tensors of files, as `parameters.Source` takes them, under the names that its language model alone has; those of what sees are left out."""

    def __init__(self, files):
        self._files = files
        self._names = {_alone(name): name for name in files.names if not name.startswith(OTHERS)}
        self.names = set(self._names)

    def shape(self, name):
        return self._files.shape(self._names[name])

    def dtype(self, name):
        return self._files.dtype(self._names[name])

    def read(self, name):
        return self._files.read(self._names[name])


def _alone(name):
    start = next((start for start in NAMES if name.startswith(start)), "")
    return NAMES.get(start, "") + name.removeprefix(start)
