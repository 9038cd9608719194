"""The classifiers of faces, by the name that `config.model.name` gives them."""

from common.nn.cnn import CNN
from common.nn.residual import ResidualCNN

MODELS = {'cnn': CNN, 'residual': ResidualCNN}
