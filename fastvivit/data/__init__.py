"""Clips out of video files: decoding by time, manifests, data sets, moving digits."""

from fastvivit.data.container import VideoError, VideoInfo, probe
from fastvivit.data.dataset import ClipDataset, Failure, collate
from fastvivit.data.digits import DigitsConfig, make_clip, write_digits, write_stills
from fastvivit.data.entries import Entries
from fastvivit.data.entry import Entry
from fastvivit.data.groups import one_a_clip
from fastvivit.data.guarded import DecoderDied, DecoderTimeout, GuardedReader
from fastvivit.data.images import read_image
from fastvivit.data.imports import ImportResult, import_annotations
from fastvivit.data.manifest import read_manifest, write_manifest
from fastvivit.data.mix import Draw, Mix, MixSampler
from fastvivit.data.quarantine import Quarantine
from fastvivit.data.sampler import EpochSampler
from fastvivit.data.scanning import ScanResult, scan
from fastvivit.data.seeds import sample_seed
from fastvivit.data.shards import PackedDataset, PackResult, pack
from fastvivit.data.synthetic import caption_frames, summarise_transcripts
from fastvivit.data.tars import read_tars
from fastvivit.data.video import read_clip
from fastvivit.data.walks import write_walks
from fastvivit.data.writer import write_clip, write_image

__all__ = [
    "ClipDataset",
    "DecoderDied",
    "DecoderTimeout",
    "DigitsConfig",
    "Draw",
    "Entries",
    "Entry",
    "EpochSampler",
    "Failure",
    "GuardedReader",
    "ImportResult",
    "Mix",
    "MixSampler",
    "PackResult",
    "PackedDataset",
    "Quarantine",
    "ScanResult",
    "VideoError",
    "VideoInfo",
    "caption_frames",
    "collate",
    "import_annotations",
    "make_clip",
    "one_a_clip",
    "pack",
    "probe",
    "read_clip",
    "read_image",
    "read_manifest",
    "read_tars",
    "sample_seed",
    "scan",
    "summarise_transcripts",
    "write_clip",
    "write_digits",
    "write_image",
    "write_manifest",
    "write_stills",
    "write_walks",
]
