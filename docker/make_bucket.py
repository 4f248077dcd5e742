"""Make a bucket at the S3 endpoint that MLflow's server uses, unless it is there. Usage: make_bucket.py NAME."""

import os
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def make_bucket(name: str) -> None:
    """Raises ClientError where the store refuses for another reason than that the bucket is there already."""
    style = os.environ["MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"]
    endpoint = os.environ["MLFLOW_S3_ENDPOINT_URL"]
    client = boto3.client("s3", endpoint_url=endpoint, config=Config(s3={"addressing_style": style}))
    try:
        client.create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise


if __name__ == "__main__":
    make_bucket(sys.argv[1])
