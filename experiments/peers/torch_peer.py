"""The benchmark's models in PyTorch, trained on random data already in memory; run by experiments/benchmark.py."""

import contextlib
import platform
import time
from collections.abc import Callable

import torch
from protocol import efficientnet_blocks, fewer_threads, serve, threads
from torch import nn
from torch.nn import functional as F

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class CNN(nn.Module):
    """common/nn/cnn.py."""

    def __init__(self, spec: dict):
        super().__init__()
        model, (height, width, channels) = spec['model'], spec['input_shape']
        depths = model['depth'] if isinstance(model['depth'], list) else [model['depth']] * len(model['widths'])
        layers: list[nn.Module] = []
        for outputs, depth in zip(model['widths'], depths, strict=True):
            for _ in range(depth):
                layers += [conv(channels, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                channels = outputs
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        flat = model['pool'] == 'flatten'
        layers += [nn.Flatten()] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        features = channels * height * width if flat else channels
        for outputs in model['dense']:
            layers += [nn.Dropout(model['dropout']), nn.Linear(features, outputs), nn.ReLU(inplace=True)]
            features = outputs
        layers += [nn.Dropout(model['dropout']), nn.Linear(features, spec['num_outputs'])]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class NormReLU(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(x), inplace=True)


class Block(nn.Module):
    """A pre-activation block of ResidualCNN."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.before, self.between = NormReLU(inputs), NormReLU(width)
        self.first, self.second = conv(inputs, width), conv(width, width)
        self.shortcut = conv(inputs, width, kernel=1) if inputs != width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.before(x)
        shortcut = x if self.shortcut is None else self.shortcut(before)
        return shortcut + self.second(self.between(self.first(before)))


class ResidualCNN(nn.Module):
    """common/nn/residual.py."""

    def __init__(self, spec: dict):
        super().__init__()
        model, channels = spec['model'], spec['model']['stem']
        layers: list[nn.Module] = [conv(spec['input_shape'][-1], channels), NormReLU(channels)]
        for width in model['widths']:
            layers.append(nn.AvgPool2d(2))
            for _ in range(model['depth']):
                layers.append(Block(channels, width))
                channels = width
        layers += [NormReLU(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(model['dropout'])]
        self.layers = nn.Sequential(*layers, nn.Linear(channels, spec['num_outputs']))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def norm_relu6(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01), nn.ReLU6(inplace=True)]


class InvertedResidual(nn.Module):
    """A block of EfficientNet-Lite0; `drop` is the rate at which an example skips it."""

    def __init__(self, inputs: int, side: int, stride: int, expansion: int, outputs: int, drop: float):
        super().__init__()
        wide = expansion * inputs
        layers = [conv(inputs, wide, 1), *norm_relu6(wide)] if expansion > 1 else []
        layers += [conv(wide, wide, side, stride, groups=wide), *norm_relu6(wide)]
        layers += [conv(wide, outputs, 1), norm_relu6(outputs)[0]]
        self.layers = nn.Sequential(*layers)
        self.adds, self.keep = stride == 1 and inputs == outputs, 1.0 - drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        if not self.adds:
            return y
        if self.keep < 1.0:
            y = y * (torch.rand(len(y), 1, 1, 1, device=y.device) < self.keep).to(y.dtype) / self.keep
        return x + y


class EfficientNetLite0(nn.Module):
    """common/nn/efficientnet.py."""

    def __init__(self, spec: dict):
        super().__init__()
        model, channels = spec['model'], 32
        layers: list[nn.Module] = [conv(spec['input_shape'][-1], channels, 3, 2), *norm_relu6(channels)]
        for side, stride, expansion, outputs, drop in efficientnet_blocks(model):
            layers.append(InvertedResidual(channels, side, stride, expansion, outputs, drop))
            channels = outputs
        layers += [conv(channels, 1280, 1), *norm_relu6(1280), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Dropout(model['dropout']), nn.Linear(1280, spec['num_outputs']))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Forecaster(nn.Module):
    """stocks/models.py."""

    def __init__(self, spec: dict):
        super().__init__()
        model = spec['model']
        self.lstm = nn.LSTM(
            spec['input_shape'][-1],
            model['hidden_size'],
            model['num_layers'],
            dropout=model['dropout_rate'],
            batch_first=True,
        )
        for name, parameter in self.lstm.named_parameters():
            if name.startswith('bias_hh'):  # PyTorch has a second bias for each gate, of which only the sum matters
                nn.init.zeros_(parameter)
                parameter.requires_grad_(False)
        self.head = nn.Linear(model['hidden_size'], spec['num_outputs'])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


MODELS = {model.__name__: model for model in (CNN, ResidualCNN, EfficientNetLite0, Forecaster)}


class TorchPeer:
    """Settings: eager as it comes, then with fused optimizer, then channels-last and compiled as well.

    On a GPU compiled with graphs of the model too (`reduce-overhead`), or the whole step, optimizer included, as one
    CUDA graph (`captured`).
    """

    def __init__(self, spec: dict):
        if spec['model']['name'] not in MODELS:
            raise NotImplementedError(f'torch_peer.py has no {spec["model"]["name"]}')
        torch.set_num_threads(threads(spec))
        torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as jax has it
        torch.backends.cudnn.benchmark = True
        self.environments: list[dict[str, str]] = []
        if DEVICE.type == 'cpu':
            # Idle threads spin, which is fast on idle cores, and slow where they take cores from those with work.
            passive, fewer = {'OMP_WAIT_POLICY': 'passive'}, fewer_threads(spec)
            self.environments = [passive, *fewer, *(passive | each for each in fewer)]
        self._spec, self._prepared = spec, ''
        self._members: list[Callable[[], None]] = []
        self._is_image = len(spec['input_shape']) == 3
        layouts = ['contiguous', 'channels_last'] if self._is_image else ['contiguous']
        self.settings = [layouts[0], *(f'{layout}, fused' for layout in layouts)]
        modes = ['compile', 'compile reduce-overhead', 'compile captured', 'captured']
        if DEVICE.type != 'cuda':
            modes = modes[:1]
        if spec['models'] > 1:  # each would be compiled by itself, and after eight PyTorch gives up
            modes = [mode for mode in modes if 'compile' not in mode]
        self.settings += [f'{layouts[-1]}, fused, {mode}' for mode in modes]
        self.num_parameters = sum(
            p.numel() for p in MODELS[spec['model']['name']](spec).parameters() if p.requires_grad
        )
        self.versions = {'torch': torch.__version__, 'python': platform.python_version()}

    def run(self, setting: str, steps: int) -> float:
        if setting != self._prepared:
            self._prepared = ''
            self._members = []  # the memory of the last setting goes before that of this one comes
            self._members = [self._member(setting) for _ in range(self._spec['models'])]
            self._prepared = setting
        self._wait()
        begin = time.perf_counter()
        for _ in range(steps):
            for step in self._members:
                step()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if DEVICE.type == 'cuda':
            torch.cuda.synchronize()

    def _member(self, setting: str) -> Callable[[], None]:
        """The training step of one model: forward, loss, backward, optimizer."""
        spec = self._spec
        model = MODELS[spec['model']['name']](spec).to(DEVICE).train()
        inputs, target = self._batch()
        if 'channels_last' in setting:
            model, inputs = model.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, spec['optimizer'], 'fused' in setting, 'captured' in setting)
        loss_of = {'cross_entropy': F.cross_entropy, 'mse': F.mse_loss, 'huber': F.huber_loss}[spec['loss']]
        half = torch.autocast(DEVICE.type, torch.bfloat16) if spec['dtype'] == 'bfloat16' else contextlib.nullcontext()
        clip = spec['optimizer']['gradient_clip']

        def loss() -> torch.Tensor:
            with half:
                return loss_of(model(inputs), target)

        if 'compile' in setting:
            loss = torch.compile(loss, mode='reduce-overhead' if 'reduce-overhead' in setting else 'default')

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()

        return captured(step) if 'captured' in setting else step

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        spec = self._spec
        inputs = torch.randn(spec['batch_size'], *spec['input_shape'], device=DEVICE)
        if self._is_image:
            inputs = inputs.permute(0, 3, 1, 2).contiguous()
        if spec['loss'] == 'cross_entropy':
            return inputs, torch.randint(spec['num_outputs'], (spec['batch_size'],), device=DEVICE)
        return inputs, torch.randn(spec['batch_size'], spec['num_outputs'], device=DEVICE)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph, recorded after a few that choose kernels and make the optimizer's state."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def make_optimizer(model: nn.Module, settings: dict, fused: bool, capturable: bool) -> torch.optim.Optimizer:
    """Weight decay is that of common/training/optim.py, which spares biases and normalisation."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {'params': [p for p in trained if p.ndim > 1], 'weight_decay': settings['weight_decay']},
        {'params': [p for p in trained if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    if settings['name'] == 'sgd':
        momentum = settings['momentum']
        return torch.optim.SGD(groups, settings['learning_rate'], momentum=momentum, nesterov=momentum > 0, fused=fused)
    rule = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW}[settings['name']]
    return rule(groups, settings['learning_rate'], fused=fused, capturable=capturable)


if __name__ == '__main__':
    serve(TorchPeer)
