//! `grpc.reflection.v1` and `v1alpha`: our own .proto files, as clients like grpcurl ask for them.
//! The two versions are the same on the wire.
//!
//! A file is answered alone; its imports are asked for by name. We have no extensions.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use prost_reflect::DescriptorPool;
use prost_reflect::FileDescriptor;

use crate::env::Env;
use crate::frontend::Code;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::call;
use crate::frontend::grpc::call::Call;
use crate::frontend::grpc::stream::Stop;
use crate::proto::DESCRIPTORS;
use crate::proto::grpc::reflection::v1::ErrorResponse;
use crate::proto::grpc::reflection::v1::FileDescriptorResponse;
use crate::proto::grpc::reflection::v1::ListServiceResponse;
use crate::proto::grpc::reflection::v1::ServerReflectionRequest;
use crate::proto::grpc::reflection::v1::ServerReflectionResponse;
use crate::proto::grpc::reflection::v1::ServiceResponse;
use crate::proto::grpc::reflection::v1::server_reflection_request::MessageRequest;
use crate::proto::grpc::reflection::v1::server_reflection_response::MessageResponse;

/// `ServerReflectionInfo`: a response to each request, until the client has no more.
pub(super) async fn stream<E: Env>(call: &mut Call<E>) -> Result<(), Stop> {
    while let Some(message) = call.next().await? {
        let response = Files::get().answer(call::decode(message)?);
        call.send(Body::encode(&response)).await?;
    }
    Ok(())
}

/// What can be asked for; made when first asked for.
struct Files {
    services: Vec<String>,
    /// Encoded `FileDescriptorProto`s.
    by_name: BTreeMap<String, Bytes>,
    /// Name of the file that declares the symbol of that full name.
    by_symbol: BTreeMap<String, String>,
}

impl Files {
    fn get() -> &'static Files {
        static FILES: OnceLock<Files> = OnceLock::new();
        FILES.get_or_init(|| Files::new(&DescriptorPool::decode(DESCRIPTORS).expect("build.rs made them")))
    }

    fn new(pool: &DescriptorPool) -> Files {
        let mut by_symbol = BTreeMap::new();
        let mut declare = |name: &str, file: FileDescriptor| {
            by_symbol.insert(name.to_owned(), file.name().to_owned());
        };
        for service in pool.services() {
            declare(service.full_name(), service.parent_file());
            service.methods().for_each(|method| declare(method.full_name(), service.parent_file()));
        }
        for message in pool.all_messages() {
            declare(message.full_name(), message.parent_file());
            message.fields().for_each(|field| declare(field.full_name(), message.parent_file()));
            message.oneofs().for_each(|oneof| declare(oneof.full_name(), message.parent_file()));
        }
        for enumeration in pool.all_enums() {
            declare(enumeration.full_name(), enumeration.parent_file());
            enumeration.values().for_each(|value| declare(value.full_name(), enumeration.parent_file()));
        }
        Files {
            services: pool.services().map(|service| service.full_name().to_owned()).collect(),
            by_name: pool.files().map(|file| (file.name().to_owned(), file.encode_to_vec().into())).collect(),
            by_symbol,
        }
    }

    fn answer(&self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let response = match &request.message_request {
            Some(MessageRequest::ListServices(_)) => {
                let service = self.services.iter().map(|name| ServiceResponse { name: name.clone() }).collect();
                Ok(MessageResponse::ListServicesResponse(ListServiceResponse { service }))
            }
            Some(MessageRequest::FileByFilename(name)) => self.file(name).ok_or_else(|| format!("file {name:?}")),
            Some(MessageRequest::FileContainingSymbol(symbol)) => {
                self.by_symbol.get(symbol).and_then(|name| self.file(name)).ok_or_else(|| format!("symbol {symbol:?}"))
            }
            Some(MessageRequest::FileContainingExtension(extension)) => {
                Err(format!("extension {} of {:?}", extension.extension_number, extension.containing_type))
            }
            Some(MessageRequest::AllExtensionNumbersOfType(name)) => Err(format!("extension of {name:?}")),
            None => Ok(error(Code::InvalidArgument, "the request asks for nothing".into())),
        };
        let response = response.unwrap_or_else(|what| error(Code::NotFound, format!("there is no {what}")));
        ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(response),
        }
    }

    fn file(&self, name: &str) -> Option<MessageResponse> {
        let file_descriptor_proto = vec![self.by_name.get(name)?.clone()];
        Some(MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto }))
    }
}

fn error(code: Code, error_message: String) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse { error_code: code as i32, error_message })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::grpc::reflection::v1::ExtensionRequest;
    use crate::proto::grpc::reflection::v1alpha;

    fn ask(message_request: MessageRequest) -> MessageResponse {
        let request = ServerReflectionRequest { host: "h".into(), message_request: Some(message_request) };
        let response = Files::get().answer(request.clone());
        assert_eq!(response.original_request, Some(request));
        assert_eq!(response.valid_host, "h");
        // v1alpha reads the same.
        let alpha = v1alpha::ServerReflectionResponse::decode(&response.encode_to_vec()[..]).unwrap();
        assert_eq!(alpha.encode_to_vec(), response.encode_to_vec());
        response.message_response.unwrap()
    }

    fn file(response: MessageResponse) -> prost_types::FileDescriptorProto {
        let MessageResponse::FileDescriptorResponse(files) = response else { panic!("{response:?}") };
        assert_eq!(files.file_descriptor_proto.len(), 1);
        prost_types::FileDescriptorProto::decode(&files.file_descriptor_proto[0][..]).unwrap()
    }

    /// Every service that has methods in `method.rs` is listed.
    #[test]
    fn services_are_listed() {
        let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())) else {
            panic!("not a list");
        };
        let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        names.sort();
        let expected = [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "ringlog.v1.Admin",
            "ringlog.v1.Log",
        ];
        assert_eq!(names, expected);
    }

    /// Every kind of symbol leads to its file.
    #[test]
    fn symbols_lead_to_files() {
        for (symbol, name) in [
            ("ringlog.v1.Log", "ringlog/v1/log.proto"),
            ("ringlog.v1.Log.Produce", "ringlog/v1/log.proto"),
            ("ringlog.v1.ProduceRequest", "ringlog/v1/log.proto"),
            ("ringlog.v1.ProduceRequest.records", "ringlog/v1/log.proto"),
            ("ringlog.v1.ConsumeRequest.start", "ringlog/v1/log.proto"),
            ("ringlog.v1.Durability", "ringlog/v1/log.proto"),
            ("ringlog.v1.DURABILITY_LEADER_MEMORY", "ringlog/v1/log.proto"),
            ("ringlog.v1.Retention", "ringlog/v1/admin.proto"),
            ("grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"),
            ("google.rpc.ErrorInfo", "google/rpc/status.proto"),
        ] {
            assert_eq!(file(ask(MessageRequest::FileContainingSymbol(symbol.into()))).name(), name, "{symbol}");
        }
    }

    /// From any file, all of its imports can be had by name: a client can build the whole pool.
    #[test]
    fn imports_can_be_followed() {
        let mut wanted = vec!["google/rpc/status.proto".to_owned(), "ringlog/v1/log.proto".to_owned()];
        let mut seen = Vec::new();
        while let Some(name) = wanted.pop() {
            let file = file(ask(MessageRequest::FileByFilename(name.clone())));
            assert_eq!(file.name(), name);
            wanted.extend(file.dependency);
            seen.push(name);
        }
        assert!(seen.contains(&"google/protobuf/any.proto".to_owned()), "{seen:?}");
    }

    /// What there is not is NOT_FOUND, inside the response.
    #[test]
    fn unknown_is_not_found() {
        let extension = ExtensionRequest { containing_type: "ringlog.v1.Record".into(), extension_number: 100 };
        for request in [
            MessageRequest::FileByFilename("none.proto".into()),
            MessageRequest::FileContainingSymbol("ringlog.v1.None".into()),
            MessageRequest::FileContainingExtension(extension),
            MessageRequest::AllExtensionNumbersOfType("ringlog.v1.Record".into()),
        ] {
            let MessageResponse::ErrorResponse(error) = ask(request.clone()) else { panic!("{request:?}") };
            assert_eq!(error.error_code, Code::NotFound as i32);
        }
    }
}
