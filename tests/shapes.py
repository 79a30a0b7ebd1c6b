"""Model shapes that many tests use."""

from resv.trace import ModelShape, VisionShape

SIGLIP_L_384 = VisionShape(
    name="siglip_l_384",
    n_layers=24,
    hidden=1024,
    ffn=4096,
    n_heads=16,
    n_patches=576,
    patch_elements=768,
    image_px=384,
)
LLAMA3_8B = ModelShape(
    name="llama3_8b",
    n_layers=32,
    hidden=4096,
    n_query_heads=32,
    n_kv_heads=8,
    head_dim=128,
    ffn=14336,
    vocab=128256,
    vision=SIGLIP_L_384,
)
TINY = ModelShape(
    name="tiny",
    n_layers=3,
    hidden=64,
    n_query_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn=128,
    vocab=100,
)
SEEING = TINY.model_copy(
    update={
        "vision": VisionShape(
            name="tiny", n_layers=2, hidden=48, ffn=96, n_heads=3, n_patches=20, patch_elements=75, image_px=28
        )
    }
)
