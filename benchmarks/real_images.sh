#!/usr/bin/env bash
# Real images through both published formats, with the shipped recipes.
#
#   benchmarks/real_images.sh tiny DATA OUT    DATA holds tiny-imagenet-200/ (20 of its classes are used)
#   benchmarks/real_images.sh cifar DATA OUT   DATA holds cifar-100-python/
#
# Finished runs are not repeated, so the script can be started again after a stop.
set -euo pipefail
what=$1 data=$2 out=$3
dskd=${DSKD:-dskd}

case $what in
  tiny)
    recipe=tiny_imagenet/resnet56-resnet20-32
    common=(data.root="$data" data.classes=20 train.schedule=cosine train.precision=bfloat16)
    teacher=resnet56 teacher_epochs=20 student=resnet8 epochs=10 seeds="0 1 2"
    ;;
  cifar)
    recipe=cifar100/resnet56-resnet20
    common=(data.root="$data" train.schedule=cosine train.precision=bfloat16)
    teacher=resnet14 teacher_epochs=10 student=resnet8 epochs=10 seeds="0"
    ;;
  *) echo "tiny or cifar" >&2; exit 2 ;;
esac

if [ ! -e "$out/teacher/result.json" ]; then
  $dskd train "$recipe" "${common[@]}" student.name=$teacher train.epochs=$teacher_epochs \
    out="$out/teacher" --resume
fi
for seed in $seeds; do
  for method in ce kd dskd; do
    preset="" taught=(teacher.name=$teacher teacher.checkpoint="$out/teacher/student.safetensors")
    [ "$method" = ce ] && taught=()
    [ "$method" = dskd ] && preset=", preset: paper-abstract" # as on the page
    run="$out/$method-seed$seed"
    [ -e "$run/result.json" ] && continue
    $dskd distill "$recipe" "${common[@]}" student.name=$student train.epochs=$epochs \
      "${taught[@]}" \
      "method={name: $method$preset}" seed=$seed out="$run" --resume
  done
done
