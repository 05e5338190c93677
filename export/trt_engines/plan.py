"""Plans an engine: its graph and settings, its name, and how an existing engine differs from the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from runtime.bundle.store import Build, Bundle, Engine, verify_files
from runtime.contract import Contract
from runtime.engines.trt.cuda import load_cuda
from runtime.errors import UserError

from .builder import BuilderSettings, Profiles, plan_profiles
from .gpu_support import TrtLibrary, check_precision, choose_targets
from .parsed_network import Network

AMPERE = 80  # the lowest compute capability that hardware-compatible engines run on


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """Describes a graph to build an engine from.

    dtype: of the KV cache; recipe: the plain values that, besides the checkpoint, the graph was made with.
    """

    dialect: str
    precision: str
    capacity: int
    batch: int
    dtype: str
    recipe: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """Describes an engine to build from a graph.

    target: as in the manifest, such as `sm86,sm89`; device: the GPU that the engine is bound to, or None.
    """

    graph: GraphRequest
    profiles: Profiles
    target: str
    device: str | None
    library: TrtLibrary
    settings: BuilderSettings

    def build(self, onnx: str, decomposed: bool = False) -> Build:
        """Returns the engine's build for the manifest. onnx: graph file; decomposed: see `builder.BuiltEngine`."""
        settings, graph = self.settings, self.graph
        options = {
            "workspace": settings.workspace,
            "optimization": settings.optimization_level,
            "hardware_compatible": settings.hardware_compatibility,
            "decomposed": decomposed,
            "graph": graph.recipe,
        }
        if self.library.flavor == "rtx":
            options["user_allocation"] = True  # older engines lack it and cannot be captured: they are rebuilt
        return Build(
            flavor=self.library.flavor,
            version=self.library.version,
            version_compatible=settings.version_compatible,
            device=self.device,
            profiles=self.profiles,
            capacity=graph.capacity,
            batch=graph.batch,
            dtype=graph.dtype,
            onnx=onnx,
            options=options,
        )

    def make_engine(self, name: str, model: str, parity: Mapping[str, Any], build: Build) -> Engine:
        graph = self.graph
        return Engine(name, graph.dialect, graph.precision, self.target, None, model, {}, dict(parity), build)

    def make_stem(self) -> str:
        """Returns the name of the engine's files, without their hash."""
        flavor = "rtx-" if self.library.flavor == "rtx" else ""
        targets = self.target.replace("+", "plus").split(",")
        target = "-".join(targets if len(targets) <= 3 else (targets[0], targets[-1]))
        batch = f"-b{self.graph.batch}" if self.graph.batch > 1 else ""
        return f"{self.graph.dialect}-{self.graph.precision}-{flavor}{target}-{self.graph.capacity}{batch}"


def make_plan(request: GraphRequest, contract: Contract, settings: BuilderSettings, library: TrtLibrary) -> Plan:
    """Plans the engine of a graph for the GPUs that the settings name, or for the GPU here.

    Raises UserError if the GPUs cannot run the precision, or if the library needs a GPU and there is none.
    """
    targets = choose_targets(library, request.precision, settings.targets)
    settings = replace(settings, flavor=library.flavor, targets=targets)
    profiles = plan_profiles(contract, request.capacity, settings.max_prompt)
    if settings.targets:
        return Plan(request, profiles, ",".join(f"sm{target}" for target in settings.targets), None, library, settings)
    cuda = load_cuda()
    gpu = cuda.find_gpu()
    if gpu is None:
        raise UserError(
            "standard TensorRT builds on the GPU that the engine is for, and there is none here; build there with "
            f"--bundle, or give --flavor rtx; a GPU here needs {cuda.explain_missing_gpu()}"
        )
    if settings.hardware_compatibility:  # for all GPUs from Ampere on; the builder measures on one of them
        least = min(gpu.capability, AMPERE)
        check_precision(request.precision, least, library.flavor)
        if least < AMPERE:
            raise UserError(f"--hardware-compatibility needs a GPU from SM{AMPERE} on, here is SM{least}; leave it out")
        return Plan(request, profiles, f"sm{AMPERE}+", None, library, settings)
    check_precision(request.precision, gpu.capability, library.flavor)
    return Plan(request, profiles, f"sm{gpu.capability}", gpu.name, library, settings)


def find_engine(bundle: Bundle | None, plan: Plan) -> Engine | None:
    """Returns the engine of a bundle that the plan would replace, or None."""
    wanted = plan.make_engine("wanted", "", {}, plan.build("")).key
    return next((engine for engine in bundle.engines if engine.key == wanted), None) if bundle else None


def name_for(bundle: Bundle | None, plan: Plan) -> str:
    """Returns the planned engine's name: that of the engine it replaces, or the plan's stem, numbered if taken."""
    if (found := find_engine(bundle, plan)) is not None:
        return found.name
    taken, name = {engine.name for engine in bundle.engines} if bundle else set(), plan.make_stem()
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(each for each in numbered if each not in taken)


def list_plan_differences(bundle: Bundle | None, plan: Plan, onnx: str | None = None) -> list[str]:
    """Returns the reasons, as text, why the engine has to be built; empty if the bundle has it as planned.

    onnx: the graph's file, if known before the graph is made.
    """
    found = find_engine(bundle, plan)
    if bundle is None or found is None or found.build is None:
        return ["the bundle has none like it"]
    old, new = asdict(found.build), asdict(plan.build(onnx or found.build.onnx))
    old_options, new_options = ({**values.pop("options")} for values in (old, new))
    for options in (old_options, new_options):
        options.pop("decomposed", None)  # a result of the build, not a setting
    old, new = flatten(old | old_options), flatten(new | new_options)
    changed = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
    wrong = [f"{name} is {old.get(name)}, now {new.get(name)}" for name in changed]
    if onnx is None and "reference" not in found.parity:  # from before references existed
        wrong.append("it has no recorded reference")
    try:
        verify_files(bundle, found, "always")
    except UserError as error:
        wrong.append(str(error).split(";")[0])
    return wrong


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens nested mappings: {"graph": {"exporter": 1}} to {"graph.exporter": 1}."""
    laid: dict[str, Any] = {}
    for name, value in values.items():
        laid |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
    return laid


def check_network(plan: Plan, network: Network, layers: int, full: bool) -> str | None:
    """Returns what is wrong with the parsed network, None if it is as the dialect requires."""
    attentions = layers if plan.graph.dialect == "trt" else 0
    masked, updates = (0, 0) if full else (attentions, 2 * attentions)
    wanted = {"attentions": attentions, "masked": masked, "updates": updates}
    for name, count in wanted.items():
        if (got := getattr(network, name)) != count:
            return f"{got} {name} in the network, expected {count}"
    return None if network.strongly_typed else "the network is not strongly typed"
