"""Make the store's bucket, if it is not there:  make_bucket.py ENDPOINT BUCKET, with AWS_... in the environment."""

import sys

import boto3
from botocore.exceptions import ClientError

endpoint, bucket = sys.argv[1:]
store = boto3.client("s3", endpoint_url=endpoint)
try:
    store.head_bucket(Bucket=bucket)
except ClientError:
    store.create_bucket(Bucket=bucket)
print(f"bucket {bucket} is there")
