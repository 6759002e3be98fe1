"""What a recipe holds: the options of a fine-tuning run, named as in diffusers' training scripts wherever those have them."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.datasets.captions.perturbation import TRAIN_PROBABILITY
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.models.model_options import BASE, check_model_name
from rotescope.train.options.limits import check_values

RECIPE = BASE.parent / "recipes" / "demo.yaml"  # how the embedded model is fine-tuned
EMBEDDED = {"pretrained_model_name_or_path": BASE, "train_data": BASE.parent.parent / "datasets/emoji/finetune.parquet"}


@dataclass(frozen=True)
class FinetuneConfig(DataOptions):
    HEADINGS: ClassVar = {
        "pretrained_model_name_or_path": "model, data and output", "duplicated": "the dose", "class_data": "prior preservation",
        "resolution": "pictures and captions", "lora": "LoRA", "seed": "training", "rand_noise_lam": "mitigations while training",
        "mixed_precision": "precision", "validation_prompts": "pictures while training",
        "monitor_steps": "the monitor", "report_to": "trackers and hub"}
    pretrained_model_name_or_path: str = str(EMBEDDED["pretrained_model_name_or_path"])
    """folder of a model in diffusers' layout, or its name on the hub: of Stable Diffusion 1, 2, 3 or XL, FLUX.1, FLUX.2 klein,
    Z-Image, Qwen-Image, Sana or Chroma"""
    train_data: str = str(EMBEDDED["train_data"])
    """folder of captioned images, Parquet file, saved Hugging Face data set, or manifest of rotescope prepare; --dataset_name,
    as in diffusers' scripts, is the same"""
    output_dir: str = "runs/finetuned"
    """where the checkpoint goes"""
    overwrite: bool = False
    """replace output_dir"""
    checkpointing_steps: int | None = None
    """keep the state of the run in output_dir/checkpoint-STEP every so many steps, 0 for never; unless given every 500, but never
    where weights lie in shards (FSDP, DeepSpeed)"""
    checkpoints_total_limit: int | None = None
    """how many of them stay, the newest; unless given all, or one where --checkpointing_steps is not given"""
    resume_from_checkpoint: str | None = None
    """go on from a checkpoint-… folder, or from the latest in output_dir; with none there the run starts anew. Later checkpoints
    in output_dir stay until the run has a new one, or ends"""
    save_dtype: str = "fp32"
    """number format of a saved full model: fp32, fp16 or bf16"""
    cache_dir: str | None = None
    """keep latents and text embeddings here for the next run, and not, as diffusers' scripts do, what is downloaded; unless given
    they are computed once all the same, and lie beside output_dir until the run has ended"""

    duplicated: int = 0
    """how many images repeat"""
    copies: int = 1
    """how often an epoch shows each of them"""
    controls: int = 0
    """how many untouched images to mark for comparison; their captions are no duplicated image's"""
    caption_style: str = "same"
    """"same": every copy under the image's own captions; "several": under several rewordings in turn"""
    plan_seed: int = 0
    """which images repeat and which are controls"""
    exclusive: bool = False
    """leave out other images that bear the caption of a duplicated one"""
    partial_plan: bool = False
    """train even where the run ends before it showed every planned copy, or planned images are missing: the dose is then less
    than the plan says"""

    class_data: str | None = None
    """folder, file or manifest of class pictures, which are trained on beside the others so that the model keeps what it knew of
    the class (DreamBooth); they are no training pictures in the manifest"""
    class_prompt: str | None = None
    """the one caption of all class pictures; their own unless given"""
    num_class_images: int = 0
    """where there are none: draw so many of --class_prompt with the base before training, into a folder beside output_dir"""
    prior_loss_weight: float = 1.0
    """of the class pictures' loss beside that of the training pictures"""

    resolution: int | None = None
    """side of the training images in pixels; the model's own unless given"""
    center_crop: bool = True
    """crop in the middle; else somewhere, but always there"""
    random_flip: bool = False
    """mirror half of the samples"""
    aspect_buckets: bool = False
    """crop each picture not to a square, but to the shape nearest to its own that has about as many pixels; a batch is of one"""
    bucket_reso_steps: int | None = None
    """what their sides are multiples of, as in kohya's scripts; 64 unless given, or an eighth of the side of small models"""
    min_bucket_reso: int | None = None
    """their shortest side; half the resolution unless given"""
    max_bucket_reso: int | None = None
    """their longest side; twice the resolution unless given"""
    masks: str | None = None
    """train where a picture's mask is white: alpha, its own opacity, or the folder of masks that have the pictures' names"""
    unmasked_weight: float = 0.0
    """of the loss where the mask is black"""
    caption_dropout: float = 0.1
    """share of the samples that train the unconditional branch"""

    lora: bool = False
    """train a LoRA on the UNet or transformer instead of the whole of it"""
    train_text_encoder: bool = False
    """a LoRA on the text encoders of CLIP too, in the families that have them; captions are then encoded in every step. Needs a
    peft as new as transformers asks, which for 5.24 was not out"""
    rank: int = 4
    """of the LoRA"""
    lora_alpha: float | None = None
    """scale of the LoRA times its rank; the rank unless given"""
    lora_format: str = "diffusers"
    """how the LoRA's file names its layers: diffusers, or kohya for other programs (of Stable Diffusion 1, 2 and XL)"""
    lora_layers: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """which layers get a LoRA, by the ends of their names; of FLUX.2 klein unless given also those of its single blocks"""
    quantize: str = "none"
    """nf4: the UNet or transformer under the LoRA in 4 bits (QLoRA), by bitsandbytes on a GPU; the LoRA stays in float32"""

    seed: int = 0
    """of everything random in training; the same seed gives the same weights"""
    train_batch_size: int = 16
    """samples a process and a gradient accumulation step"""
    gradient_accumulation_steps: int = 1
    """parts of a batch that go through the model one after another"""
    gradient_checkpointing: bool = False
    """less memory, more time"""
    max_train_steps: int = 1000
    """optimizer steps"""
    num_train_epochs: int | None = None
    """train so many passes over the data, copies counted, instead of max_train_steps; the command line wins over a --config"""
    learning_rate: float = 1e-4
    """of AdamW"""
    scale_lr: bool = False
    """multiply learning_rate by the samples of a step, of all processes together"""
    lr_scheduler: str = "constant"
    """constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial"""
    lr_warmup_steps: int = 0
    """for all schedules but constant"""
    lr_num_cycles: int = 1
    """restarts of cosine_with_restarts"""
    lr_power: float = 1.0
    """of polynomial"""
    use_8bit_adam: bool = False
    """AdamW with 8-bit moments, by bitsandbytes"""
    adam_beta1: float = 0.9
    """decay of AdamW's first moment"""
    adam_beta2: float = 0.999
    """decay of AdamW's second moment"""
    adam_weight_decay: float = 1e-2
    """of AdamW"""
    adam_epsilon: float = 1e-8
    """of AdamW: gradients well below it hardly move a weight"""
    max_grad_norm: float = 1.0
    """gradients are clipped at this norm"""
    use_ema: bool = False
    """train beside the weights their exponential moving average, and save that"""
    ema_decay: float = 0.9999
    """of the moving average; it is (1 + step) / (10 + step) as long as that is less"""
    snr_gamma: float | None = None
    """min-SNR weighting of the loss; 5.0 is its authors' value"""
    weighting_scheme: str = "logit_normal"
    """which noise levels flow matching trains most: none, logit_normal, mode, symmetric_exponential; or weighs most: sigma_sqrt,
    cosmap"""
    logit_mean: float = 0.0
    """of logit_normal"""
    logit_std: float = 1.0
    """of logit_normal"""
    mode_scale: float = 1.29
    """of mode; below 0 the ends are trained most, above it the middle"""
    exponential_scale: float = 4.0
    """of symmetric_exponential: how much more the ends are trained than the middle"""
    guidance_scale: float = 3.5
    """what a model distilled from guidance, as FLUX.1-dev, is told in training"""
    noise_offset: float = 0.0
    """add to the noise so much of a draw that is one for each image and channel"""
    rand_noise_lam: float = 0.0
    """mitigation: add so much Gaussian noise to the text embeddings (Somepalli et al.)"""
    mixup_noise_lam: float | None = None
    """mitigation: blend two captions' embeddings, the share drawn from Beta(this, 1) (Somepalli et al.)"""
    caption_perturbation: str | None = None
    """mitigation: random_token_addition, random_number_addition, caption_word_repetition, random_caption_replacement or
    random_word_replacement, drawn anew whenever a caption is shown (Somepalli et al.)"""
    caption_perturbation_probability: float = TRAIN_PROBABILITY
    """share of the samples that get it"""
    hard_threshold: float | None = None
    """mitigation: skip samples whose prediction gap, in epsilon, reaches it; one more forward pass (Wen et al.)"""
    mem_ratio: float | None = None
    """mitigation: skip samples whose loss, times this, is below the mean at its noise level (IET-AGC; 1.25 on LAION-10K)"""
    arr_ema_decay: float = 0.8
    """of that mean"""
    mixed_precision: str | None = None
    """no, fp16 or bf16; as accelerate is configured unless given"""
    allow_tf32: bool = False
    """faster matrix products on Ampere and later, slightly less exact"""

    validation_prompts: tuple[str, ...] = ()
    """show what the model makes of these, in output_dir/validation/ and at the trackers"""
    validation_steps: int = 500
    """every so many steps"""
    num_validation_images: int = 1
    """of each prompt"""
    monitor_steps: int | None = None
    """measure copy rate and prediction gap every so many steps, and after the last: curves in monitor.png and monitor.jsonl"""
    monitor_prompts: int = 8
    """of how many captions in each group: duplicated, control, held-out"""
    monitor_seeds: int = 1
    """images of each caption"""
    monitor_inference_steps: int = 25
    """denoising steps of those"""
    monitor_guidance_scale: float = 7.5
    """guidance of those"""
    monitor_heldout: str | None = None
    """folder or file of captions that are not trained on; with the embedded data its held-out split unless given"""
    stop_at_copy_rate: float | None = None
    """stop once so large a share of the duplicated captions' images are copies; needs --monitor_steps"""

    report_to: str | None = None
    """tracker of loss, learning rate and pictures: tensorboard (in output_dir/logs; pip install 'rotescope[trackers]' brings it),
    wandb, all, or another of accelerate's"""
    tracker_project_name: str = "rotescope"
    """how the trackers call the run's project"""
    push_to_hub: bool = False
    """upload the result with a model card, without the manifest, whose files are local, and without local paths"""
    hub_model_id: str | None = None
    """under this name; the output folder's unless given"""
    hub_token: str | None = None
    """the one of `hf auth login` unless given; it is not saved"""

    def check(self):
        super().check()
        check_values(self)
        check_model_name(self.pretrained_model_name_or_path)
