"""The licence identifiers that the Hub knows; its client has no list of them.

From https://huggingface.co/docs/hub/repositories-licenses. A card with another text in their place has a
licence that the Hub does not show, and that no search for a licence finds.
"""

from lora_hf.errors import UserError, did_you_mean

LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda
    cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c
    ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl open-mdw openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1
    ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3
    llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
    """.split()
)


def check_license(name: str, field: str) -> None:
    """Refuse what is no identifier of the Hub's.

    Args:
        name: as it was written.
        field: the option it was written in.

    Raises:
        UserError: it is none; the message has those that are near.
    """
    if name not in LICENSES:
        near = did_you_mean(name.lower(), sorted(LICENSES), most=3)
        raise UserError(
            f"{field}={name!r} is no licence that the Hub knows.{near} All are at "
            "huggingface.co/docs/hub/repositories-licenses; one that is not among them is 'other'"
        )
