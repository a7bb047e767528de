//! Serves a directory as S3 does: a remote for the tests that is neither a file system nor rclone.
//!
//! ```text
//! s3server ADDRESS DIRECTORY      keys in S3_ACCESS_KEY and S3_SECRET_KEY
//! ```
//!
//! A bucket is a directory, an object is a file in it, with whatever content the file has: damage
//! done to it is what a client gets to see. The protocol, with its signatures, is the crate s3s's,
//! and so is most of the storage; what its storage does otherwise than S3 is put right here.

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use md5::{Digest, Md5};
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, directory] = &arguments[..] else { bail!("usage: s3server ADDRESS DIRECTORY") };
    let key = |name: &str| env::var(name).with_context(|| format!("{name} is not set"));
    let Ok(inner) = FileSystem::new(directory) else { bail!("no directory \"{directory}\"") };
    let mut builder = S3ServiceBuilder::new(Storage {
        inner,
        root: PathBuf::from(directory.as_str()),
        hashes: Mutex::default(),
    });
    // Not on the command line, where every user of the machine could read them.
    builder.set_auth(SimpleAuth::from_single(key("S3_ACCESS_KEY")?, key("S3_SECRET_KEY")?));
    let service = builder.build().into_shared();
    let listener = TcpListener::bind(address).await.with_context(|| address.clone())?;
    loop {
        let (socket, _) = listener.accept().await?;
        let service = service.clone();
        tokio::spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            if let Err(error) = builder.serve_connection(TokioIo::new(socket), service).await {
                // Clients are killed on purpose here.
                eprintln!("a connection ended: {error}");
            }
        });
    }
}

/// Objects as files.
struct Storage {
    inner: FileSystem,
    root: PathBuf,
    /// Hashes of files as they were at some time: a listing must not read everything again.
    hashes: Mutex<HashMap<PathBuf, (u64, SystemTime, String)>>,
}

/// One page of a listing.
struct Page {
    objects: Vec<Object>,
    prefixes: Vec<CommonPrefix>,
    /// The last name on it, if more follow.
    next: Option<String>,
}

/// What a list request asks for.
struct Question<'a> {
    bucket: &'a str,
    prefix: &'a str,
    delimiter: Option<&'a str>,
    after: &'a str,
    limit: usize,
}

impl Storage {
    /// Lists as S3 does: by name, common prefixes once, a page at a time.
    fn list(&self, question: &Question<'_>) -> S3Result<Page> {
        let bucket = self.root.join(question.bucket);
        if !bucket.is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        // Names are walked from the last directory that the prefix names.
        let start = question.prefix.rsplit_once('/').map_or("", |(directory, _)| directory);
        let mut names = BTreeSet::new();
        walk(&bucket, start, question, &mut names);
        let mut left: Vec<String> =
            names.into_iter().filter(|name| name.as_str() > question.after).collect();
        let more = left.len() > question.limit;
        left.truncate(question.limit);
        let next = if more { left.last().cloned() } else { None };
        let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
        for name in left {
            if question.delimiter.is_some_and(|delimiter| name.ends_with(delimiter)) {
                prefixes.push(CommonPrefix { prefix: Some(name) });
                continue;
            }
            // It may have been deleted since.
            let Ok(metadata) = bucket.join(&name).metadata() else { continue };
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            objects.push(Object {
                e_tag: self.hash(&bucket.join(&name), metadata.len(), modified),
                key: Some(name),
                size: Some(i64::try_from(metadata.len()).unwrap_or(i64::MAX)),
                last_modified: Some(Timestamp::from(modified)),
                ..Object::default()
            });
        }
        Ok(Page { objects, prefixes, next })
    }

    /// The hash of a file's content, in quotation marks as S3 gives it.
    fn hash(&self, path: &Path, length: u64, modified: SystemTime) -> Option<String> {
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known_length, known_modified, hash)) = hashes.get(path)
            && (*known_length, *known_modified) == (length, modified)
        {
            return Some(hash.clone());
        }
        let digest = Md5::digest(std::fs::read(path).ok()?);
        let mut hash = String::from("\"");
        for byte in digest {
            hash.push_str(&format!("{byte:02x}"));
        }
        hash.push('"');
        hashes.insert(path.to_path_buf(), (length, modified, hash.clone()));
        Some(hash)
    }

    fn remove(&self, bucket: &str, key: &str) -> S3Result<()> {
        let path = self.inside(bucket, key)?;
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            // What is gone already is gone.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(s3_error!(error, AccessDenied)),
        }
        // A bucket has no directories: with its last object one is gone.
        for parent in path.ancestors().skip(1) {
            if parent == self.root.join(bucket) || std::fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// A directory is no object.
    fn exists(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        let path = self.inside(bucket, key)?;
        if path.is_file() { Ok(path) } else { Err(s3_error!(NoSuchKey)) }
    }

    fn inside(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        if bucket.starts_with('.') || key.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(s3_error!(InvalidArgument));
        }
        Ok(self.root.join(bucket).join(key))
    }
}

/// Collects names of objects, and of common prefixes where there is a delimiter.
fn walk(bucket: &Path, directory: &str, question: &Question<'_>, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(bucket.join(directory)).into_iter().flatten().flatten() {
        let Ok(leaf) = entry.file_name().into_string() else { continue };
        // What the storage has not finished writing.
        if leaf.starts_with(".tmp.") {
            continue;
        }
        let name = if directory.is_empty() { leaf } else { format!("{directory}/{leaf}") };
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let name_or_prefix = if is_directory { format!("{name}/") } else { name.clone() };
        if !name_or_prefix.starts_with(question.prefix)
            && !question.prefix.starts_with(&name_or_prefix)
        {
            continue;
        }
        match question.delimiter {
            _ if !is_directory => _ = names.insert(name),
            Some("/") if name_or_prefix.len() > question.prefix.len() => {
                names.insert(name_or_prefix);
            }
            _ => walk(bucket, &name, question, names),
        }
    }
}

fn limit(asked: Option<i32>) -> usize {
    usize::try_from(asked.unwrap_or(1000)).unwrap_or(0).clamp(1, 1000)
}

/// Takes methods over from the storage as they are.
macro_rules! as_they_are {
    ($($method:ident: $input:ident -> $output:ident),* $(,)?) => {
        #[async_trait]
        impl S3 for Storage {
            $(async fn $method(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.inner.$method(request).await
            })*

            async fn get_object(
                &self,
                request: S3Request<GetObjectInput>,
            ) -> S3Result<S3Response<GetObjectOutput>> {
                self.exists(&request.input.bucket, &request.input.key)?;
                self.inner.get_object(request).await
            }

            async fn head_object(
                &self,
                request: S3Request<HeadObjectInput>,
            ) -> S3Result<S3Response<HeadObjectOutput>> {
                let path = self.exists(&request.input.bucket, &request.input.key)?;
                let mut response = self.inner.head_object(request).await?;
                if let Ok(metadata) = path.metadata()
                    && let Ok(modified) = metadata.modified()
                {
                    response.output.e_tag = self.hash(&path, metadata.len(), modified);
                }
                Ok(response)
            }

            async fn get_bucket_versioning(
                &self,
                _: S3Request<GetBucketVersioningInput>,
            ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
                Ok(S3Response::new(GetBucketVersioningOutput::default()))
            }

            async fn delete_object(
                &self,
                request: S3Request<DeleteObjectInput>,
            ) -> S3Result<S3Response<DeleteObjectOutput>> {
                self.remove(&request.input.bucket, &request.input.key)?;
                Ok(S3Response::new(DeleteObjectOutput::default()))
            }

            async fn delete_objects(
                &self,
                request: S3Request<DeleteObjectsInput>,
            ) -> S3Result<S3Response<DeleteObjectsOutput>> {
                let input = request.input;
                let mut deleted = Vec::new();
                for object in input.delete.objects {
                    self.remove(&input.bucket, &object.key)?;
                    deleted.push(DeletedObject { key: Some(object.key), ..Default::default() });
                }
                let output = DeleteObjectsOutput { deleted: Some(deleted), ..Default::default() };
                Ok(S3Response::new(output))
            }

            async fn list_objects(
                &self,
                request: S3Request<ListObjectsInput>,
            ) -> S3Result<S3Response<ListObjectsOutput>> {
                let input = request.input;
                let page = self.list(&Question {
                    bucket: &input.bucket,
                    prefix: input.prefix.as_deref().unwrap_or_default(),
                    delimiter: input.delimiter.as_deref().filter(|it| !it.is_empty()),
                    after: input.marker.as_deref().unwrap_or_default(),
                    limit: limit(input.max_keys),
                })?;
                Ok(S3Response::new(ListObjectsOutput {
                    is_truncated: Some(page.next.is_some()),
                    next_marker: page.next,
                    contents: Some(page.objects),
                    common_prefixes: Some(page.prefixes),
                    name: Some(input.bucket),
                    prefix: input.prefix,
                    delimiter: input.delimiter,
                    max_keys: input.max_keys,
                    marker: input.marker,
                    ..Default::default()
                }))
            }

            async fn list_objects_v2(
                &self,
                request: S3Request<ListObjectsV2Input>,
            ) -> S3Result<S3Response<ListObjectsV2Output>> {
                let input = request.input;
                let after = input.continuation_token.as_deref().or(input.start_after.as_deref());
                let page = self.list(&Question {
                    bucket: &input.bucket,
                    prefix: input.prefix.as_deref().unwrap_or_default(),
                    delimiter: input.delimiter.as_deref().filter(|it| !it.is_empty()),
                    after: after.unwrap_or_default(),
                    limit: limit(input.max_keys),
                })?;
                let count = page.objects.len() + page.prefixes.len();
                Ok(S3Response::new(ListObjectsV2Output {
                    is_truncated: Some(page.next.is_some()),
                    next_continuation_token: page.next,
                    key_count: i32::try_from(count).ok(),
                    contents: Some(page.objects),
                    common_prefixes: Some(page.prefixes),
                    name: Some(input.bucket),
                    prefix: input.prefix,
                    delimiter: input.delimiter,
                    max_keys: input.max_keys,
                    continuation_token: input.continuation_token,
                    start_after: input.start_after,
                    ..Default::default()
                }))
            }
        }
    };
}

as_they_are! {
    create_bucket: CreateBucketInput -> CreateBucketOutput,
    delete_bucket: DeleteBucketInput -> DeleteBucketOutput,
    head_bucket: HeadBucketInput -> HeadBucketOutput,
    list_buckets: ListBucketsInput -> ListBucketsOutput,
    get_bucket_location: GetBucketLocationInput -> GetBucketLocationOutput,
    put_object: PutObjectInput -> PutObjectOutput,
    copy_object: CopyObjectInput -> CopyObjectOutput,
    create_multipart_upload: CreateMultipartUploadInput -> CreateMultipartUploadOutput,
    upload_part: UploadPartInput -> UploadPartOutput,
    list_parts: ListPartsInput -> ListPartsOutput,
    complete_multipart_upload: CompleteMultipartUploadInput -> CompleteMultipartUploadOutput,
    abort_multipart_upload: AbortMultipartUploadInput -> AbortMultipartUploadOutput,
}
