# %% [markdown]
# # From your own CSV to a shipped adapter that predicts
#
# A file of labelled texts becomes a recipe, an adapter with a score, and a folder that answers new texts.
#
# The file here has 240 short mails with one of three labels. The base model is a BERT with random weights and few of
# them, so that the notebook needs no download. With a real one, write its name on the Hub in place of `bert`.

# %%
import csv
import random

draw = random.Random(0)
MAILS = {
    "delivery": ["where is my parcel", "the parcel is late", "the box never came", "has it been sent"],
    "refund": ["i want my money back", "the money came twice", "please pay it back", "you charged me twice"],
    "account": ["i cannot log in", "my password is wrong", "please close my account", "change my address"],
}
OPENINGS = ["hello", "good morning", "dear team", "hi there", ""]
ENDINGS = ["thank you", "please answer soon", "best wishes", "this is urgent", ""]

with open("mail.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["message", "topic"])
    for _ in range(240):
        topic = draw.choice(list(MAILS))
        message = f"{draw.choice(OPENINGS)} {draw.choice(MAILS[topic])} {draw.choice(ENDINGS)}"
        rows.writerow([" ".join(message.split()), topic])

# %%
# !head -n 4 mail.csv

# %% [markdown]
# The base model, with one token for each word:

# %%
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

texts = [*OPENINGS, *ENDINGS, *(text for listed in MAILS.values() for text in listed)]
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in texts for word in text.split()})]
tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
torch.manual_seed(0)
config = BertConfig(
    vocab_size=len(words),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    initializer_range=0.1,
)
BertModel(config).save_pretrained("bert")
tokenizer.save_pretrained("bert")
print(len(words), "words")
# %% [markdown]
# ## A recipe for these rows
#
# `tangora new` looks at the rows and writes a recipe with comments. It cuts test rows from the file, unless `--test` names
# others.

# %%
# !tangora new --from mail.csv --text message --label topic --base bert --out mail.yaml

# %%
# !cat mail.yaml

# %% [markdown]
# ## Look before you train
#
# `--dry-run` trains nothing. It shows rows, classes, lengths, one row as the model reads it, memory and time:

# %%
# !tangora finetune mail.yaml --task mail --out adapters/mail --dry-run

# %% [markdown]
# ## Train and score
#
# A base with random weights needs a higher rate than a pretrained one. `--set` changes a key of the recipe:

# %%
# !tangora finetune mail.yaml --task mail --out adapters/mail --set modes.lora.training.learning_rate=5e-3

# %% [markdown]
# `zero-shot` is the base with a new head, the level to beat. The test rows were in no training:

# %%
# !tangora evaluate mail.yaml adapters/mail

# %% [markdown]
# ## Answer new rows
#
# One text, or a file, whose columns stay and which gets new ones. Read the probabilities with the score: so small a model
# is often unsure, and one mail in ten gets a wrong answer.

# %%
# !tangora predict adapters/mail --text "dear team my password is wrong"

# %%
with open("new.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["id", "message"])
    rows.writerows([[7, "hello where is my parcel"], [8, "please pay it back best wishes"]])

# %%
# !tangora predict adapters/mail --in new.csv --out answered.csv --probabilities && cat answered.csv

# %% [markdown]
# ## Ship it
#
# The folder is a PEFT adapter, with its head, its labels and how rows are read. The base is not in it; `tangora.json`
# names it. In a program, wherever the folder lies:

# %%
import tangora

mail = tangora.predictor("adapters/mail")
answers = mail(["you charged me twice", "the box never came"])
print(answers.answers, [f"{share:.3f}" for share in answers.probability])

# %%
# !ls adapters/mail

# %% [markdown]
# All options are in [From a CSV file to an adapter that predicts](../first-adapter.md). `tangora push` publishes the
# folder on [the Hub](../hub.md). Several files make several adapters, which `tangora fuse` makes one of:
# [Classifiers](../classifiers.md).
