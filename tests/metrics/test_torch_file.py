"""State dicts out of torch's files: what torch wrote is read, and what else a file asks for never happens."""

import base64
import os
import pickle
import zipfile
import zlib
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from torch_writer import write_torch_file

from flowjax.metrics.torch_file import read_state_dict

RNG = np.random.default_rng(0)

# torch 2.13 saved: a transposed view, a parameter, a scalar, and a slice of bfloat16, with the attribute _metadata
SAVED_BY_TORCH = {
    "archive": (
        "c-o~^yKmD#7{54)lbXJH^Z}GNq)^h@Y4d1-Ru=MNBuWsH#S*!Rn^?GUKKoh(Ql(0$1va`MCd6OB!T@7;SXh{l7#J!h!~!dKcIw)$"
        "LZF;-IXSuC<G%a8&+~FLhEOtz_KaTCk5sE%(^s_dii*{A<DMaj-RN#$tTE-XX&71=>t@~NZdw)1(kj>WGUfn{79o;SItkgLZrM0}"
        "U(>5K3``lDgg9MV#=2p1B}-da){RODYjxYSN-F{f(Ns!F5S&eRs#OhQE`*Z|Q^mL4A32CC5wd3jSS3o<a$^}1GK(R3OGa{3W;UQh"
        "j>yps;GWi~mjf6&i_oQTo}mR@wV}I(orY?uOB&WJ4ti?DP%Tz-1$pSLC1eIe9~ENOp<j-y!$DW%5Qf7=IP%1K7<deWMHo`z&QY|6"
        "4Z|)|^EfxmdeuA4QHNZBV}v|{;W!~59d$`ZFq|mDNrhY$s;R~zoC?s0PFVP?M|Ikv%D@>y6~l1$7KsD#d5-!#?^0gCkSfCH@+w?Z"
        "I>_b{IjTzU87{5Dm_joEF0Vq`xrP<ZvdR6zxE!%<dm%k9Cz5@MUtK?m44v~WvuFUty(~&En%0tvOHDROjG((brF#4Q^CN1Q&el}J"
        "D7Q=1OpKCh=+*j?R>zW<38m&=jqD^fFnb@qF+_s-qk%p&>ls*hfHjjQyClx+M|Wo!I>v@ZJ*;2-I>Ztc_KzOA(X~KTj!#J9^nVy|"
        "S=VOC*Btqfxkl!zIqGQO+4klj`D3t+qp_ePUJ_I2@AbE+_7>Hf9{civ3MAX;T?y(5l9=Cj1QJbFs^9puZSF%q^FR7d?C0j3c)zKB"
        "e%)Tb2hDi;UM1!BYaqi><&Q6`ciQLw2oiP+&^fxTSvsk}hbry<CA}hv>3=lBPvmm>tdJ85xk4d7HOXg%DSj%S=O+tOSzh2X`Fu80"
        "$P}o{_gnBIMSP?jml0~#^XczKy?dO8-(z94zX1&dkP?Gh^{+6AzljV7NH+Z>dpcK`$KMG00zCauw6_6;;r^=a4#1yBQK)x>vHl7S"
        "VpFjYmJeh7)f2?N2xEmX)}Q%7>|i{E&4jW3-0cbK`minT%%4&t!C14XO|s9+EIYPS8qv!hk_)Ym7<YZg?z9@#={hqV?z8*Wi?c3<"
        "bN0J?e*+_}BF_"
    ),
    "legacy": (
        "c-nPROK;Oa5cVqxHEk(x%Co#39wE3++ngF9)XNsynu{;Ua-40v$k>_PbrDFBa%n021`Ztg8T=i70ul$tb{e%PtUPPY?9TUnGqWS@"
        "s~P|Kw()!E-H+|X#z=ehOUHc(isdaRiZbA-Ov5zx_b3-EO+dv9-W;C9Ov;%0H0iM*0qxK;F(^L{s4v(jDnK8CVR;n{iYVn0Dn#>i"
        "^jIRHN(|4)G18<DHDY8La)w9~(@-LdFt>P*a@u>zLTQ3hcR{thS<KjFT*$@;%KDK6EtDw_qlTYJ77Nqow41TG=S!N1l>2+O3A$x@"
        "wOj+<4Ehv|GR548(?Gr{gC<nGdA!qhmhEPHZLMXmI<^DVLT)(7P+|48gi||2Av)0xV1}qfKLGPflq)+eVb+DYqW)4|mjwdm|08Y?"
        "@Zdd_l$&rSLV1x99j9;F&DLsbc?A}t8qtvUY)-4~!#Sev!}*f(f`p4MTskbA%b($j3yWo|B^?O3TH=mN-NYtOD!q1s%61$yxQ<jR"
        "Qr$qRdcCB$DdCn2OU0O?Al`-BCqQ2m4Sc>b0lxDuaNBX<E&>|}d~XLkhBe&JYj{u+Jd|L$P|t?&$eY1bADa^N0vW*LAw2OgqQKK3"
        "G>Y*Zy}oBe6+(3JwY<$==#;jp(+bq4iPNVI-JlIkIa)v0^GzLlwejDWoR8L(PN!2<j;~Rk)4>mIg!aAj7s9IDPy"
    ),
}


@pytest.mark.parametrize("layout", ["archive", "legacy"])
def test_reads_what_torch_wrote(tmp_path, layout):
    file = tmp_path / "weights.pth"
    file.write_bytes(zlib.decompress(base64.b85decode(SAVED_BY_TORCH[layout])))
    found = read_state_dict(file)
    assert list(found) == ["first.weight", "first.bias", "steps", "half"]
    np.testing.assert_array_equal(found["first.weight"], np.arange(6, dtype=np.float32).reshape(2, 3).T)
    np.testing.assert_array_equal(found["first.bias"], np.array([1.5, -2], np.float32))
    assert (found["steps"].dtype, found["steps"].shape, int(found["steps"])) == (np.int64, (), 7)
    np.testing.assert_array_equal(found["half"], np.array([1, 2], ml_dtypes.bfloat16))


@pytest.mark.parametrize("legacy", [False, True])
def test_any_state_dict_comes_back(tmp_path, legacy):
    state = {
        "weight": RNG.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "bias": RNG.normal(size=4),
        "steps": np.array(3),
    }
    write_torch_file(tmp_path / "w.pth", state, legacy=legacy)
    found = read_state_dict(tmp_path / "w.pth")
    assert list(found) == list(state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


class Runs:
    """Unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class BuildsWith:
    """Unpickling this calls eval through an attribute of an innocent class."""

    def __reduce__(self):
        return OrderedDict, ([("a", 1)],)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_never_run(tmp_path, legacy):
    file, folder = tmp_path / "w.pth", tmp_path / "made"
    write_torch_file(file, {"a": np.ones(2, np.float32), "b": Runs(folder)}, legacy=legacy)
    with pytest.raises(
        ValueError, match=rf"{os.mkdir.__module__}\.mkdir, which no state dict needs; nothing"
    ):
        read_state_dict(file)
    assert not folder.exists()
    assert pickle.loads(pickle.dumps(Runs(folder))) is None
    assert folder.exists()  # so the file was armed


@pytest.mark.parametrize("protocol", [0, 3, 4])
def test_other_ways_to_name_code_are_refused_too(tmp_path, protocol):
    file, folder = tmp_path / "w.pth", tmp_path / "made"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps({"b": Runs(folder)}, protocol))
    with pytest.raises(ValueError, match="nothing of it was run"):
        read_state_dict(file)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "no whole file"),  # calls a storage class
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "no whole file"),  # with arguments
        (b"\x80\x02(ios\nsystem\n.", "INST"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "memory without end|no whole file"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "entry 'a' is no tensor"),
        (b"\x80\x02]q\x00h\x00a.", "no state dict"),  # a list that holds itself
        (b"\x80\x02}", "no whole file"),
        (b"", "no whole file"),
    ],
)
def test_odd_programs(tmp_path, program, message):
    file = tmp_path / "w.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", program)
    with pytest.raises(ValueError, match=message):
        read_state_dict(file)


def test_arguments_of_collections_are_not_taken(tmp_path):
    write_torch_file(tmp_path / "w.pth", {"a": BuildsWith()})
    with pytest.raises(ValueError, match=r"w\.pth"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_is_refused(tmp_path, legacy):
    file = tmp_path / "w.pth"
    write_torch_file(file, {"a": np.ones(9, np.float32), "b": np.ones((2, 2), np.float32)}, legacy=legacy)
    whole = file.read_bytes()
    for length in range(0, len(whole), 3):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"w\.pth"):
            read_state_dict(file)


def test_damage_never_ends_otherwise_than_in_a_sentence(tmp_path):
    """Any byte of the program changed: read, or refused by ValueError; nothing else may come out."""
    file = tmp_path / "w.pth"
    write_torch_file(file, {"a": np.ones(9, np.float32), "b": np.ones((2, 2), np.float32)}, legacy=True)
    whole = file.read_bytes()
    refused = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        damaged[RNG.integers(len(whole))] = RNG.integers(256)
        file.write_bytes(damaged)
        try:
            read_state_dict(file)
        except ValueError:
            refused += 1
    assert refused > 250


def test_tensors_stay_inside_their_storage(tmp_path):
    """A view that repeats a few numbers could fill all memory; one beyond the end would read what is not there."""
    file = tmp_path / "w.pth"
    array = np.ones((4, 4), np.float32)
    broadcast = np.lib.stride_tricks.as_strided(array, (1 << 20, 1 << 20), (0, 0))
    write_torch_file(file, {"a": array})
    program = zipfile.ZipFile(file).read("weights/data.pkl")
    for shape, strides in (((5, 4), (4, 1)), ((4, 4), (5, 1)), (broadcast.shape, (0, 0)), ((4, 4), (-1, 1))):
        changed = program.replace(_pair(4, 4), _pair(*shape)).replace(_pair(4, 1), _pair(*strides))
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("weights/data.pkl", changed)
            archive.writestr("weights/data/0", array.tobytes())
        with pytest.raises(ValueError, match="tensor a"):
            read_state_dict(file)


def _pair(a, b):
    """Two numbers and TUPLE2, as pickle writes them."""
    return pickle.dumps((a, b), 2)[2:].split(b"\x86")[0] + b"\x86"


def test_what_is_no_weights_file(tmp_path):
    file = tmp_path / "w.pth"
    with pytest.raises(FileNotFoundError):
        read_state_dict(file)
    file.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"torch\.save"):
        read_state_dict(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"without the data\.pkl"):
        read_state_dict(file)
    write_torch_file(file, {"a": np.ones(2, np.float32)})
    with (
        zipfile.ZipFile(file) as stored,
        zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as other,
    ):
        for name in stored.namelist():
            other.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match="compressed"):
        read_state_dict(tmp_path / "c.pth")
