"""The classifiers of skin lesions, by the name that `config.model.name` gives them."""

from common.nn.cnn import CNN

MODELS = {'cnn': CNN}
