#!/bin/sh
# compile-checkpoints FOLDER: builds every checkpoint of FOLDER into $ECA_REPOSITORY, with its labels.txt and images/
# where they are there. What was built before is found unchanged and costs little.
set -eu
folder=${1:?usage: compile-checkpoints FOLDER}
if [ ! -r "$folder" ] || [ ! -x "$folder" ]; then
    echo "the folder of ECA_CHECKPOINTS cannot be read by user $(id -u); chmod a+rx on it, and a+r on its files" >&2
    exit 2
fi
set --
for file in "$folder"/*.pth "$folder"/*.pth.tar "$folder"/*.pt "$folder"/*.ckpt "$folder"/*.safetensors; do
    if [ -f "$file" ]; then set -- "$@" "$file"; fi
done
if [ $# -eq 0 ]; then
    echo "there is no .pth, .pth.tar, .pt, .ckpt or .safetensors in $folder; set ECA_CHECKPOINTS to the folder of yours" >&2
    exit 2
fi
if [ -f "$folder/labels.txt" ]; then set -- "$@" --labels "$folder/labels.txt"; fi
if [ -d "$folder/images" ]; then set -- "$@" --images "$folder/images"; fi
exec eca-build compile "$@"
