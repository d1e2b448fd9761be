//! Deny adapters: components that answer in place of the host.
//!
//! A component that is not given a permission must not reach what is behind it, and
//! must not fail to link either: it may never ask. So the interfaces that the
//! permission is about ([`permission`]) are exported by a component that is generated
//! here, from the very types that the denied component imports. It fits any version of
//! an interface, also ones that this crate has never heard of.
//!
//! # What it answers
//!
//! | a function returns | the answer |
//! | --- | --- |
//! | a `result` | its error; which one, see below |
//! | lists, options, numbers, texts | the empty one: no environment variable, no folder, zero |
//! | a resource, a stream, a future | none can be made: the call traps |
//!
//! The last row is out of reach: all of those belong to methods of resources that only a
//! denied function could have made, or to constructors, of which the denied interfaces
//! have none.
//!
//! Of an error type the case is taken that says it best (`REFUSALS`); where it carries
//! a text, the text says `access denied` and which permission is not inherited.
//!
//! # How it is made
//!
//! One core module. Every function's answer is known beforehand: it is laid out in the
//! module's data as the canonical ABI wants it, and the function returns its address.
//! Arguments are lowered into memory that nobody reads, at one and the same address; a
//! handle among them is given back.

use std::collections::HashMap;

use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, DataSection, EntityType, ExportKind, ExportSection, Function,
    FunctionSection, ImportSection, InstructionSink, MemorySection, MemoryType, Module, TypeSection, ValType,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{
    Function as WitFunction, FunctionKind, Handle, InterfaceId, LiftLowerAbi, ManglingAndAbi, Resolve,
    ResourceIntrinsic, SizeAlign, Type, TypeDefKind, TypeId, TypeOwner, Variant, WasmExport, WasmExportKind,
    WasmImport, WorldId, WorldItem, WorldKey,
    abi::{AbiVariant, FlatTypes, WasmType},
};

use crate::{Code, Error, Permissions, guarded, permissions::permission, read};

/// Cases of error types that say that something is not allowed, the most fitting first.
const REFUSALS: [&str; 15] = [
    // Key-value stores, SQLite, sockets.
    "access-denied",
    // wasi:http; the older spelling is that of no released version, but costs nothing.
    "HTTP-request-denied",
    "http-request-denied",
    // fermyon:spin/http.
    "destination-not-allowed",
    "not-permitted",
    "access",
    // Variables: those that one may not see are not there.
    "undefined",
    // Databases and MQTT: as the host says it of an address that is not allowed.
    "connection-failed",
    // Models, likewise.
    "invalid-input",
    "upstream",
    "unexpected-error",
    "runtime-error",
    "other",
    "provider",
    // fermyon:spin/redis of the first version: `success` or `error`.
    "error",
];

/// Where data begins: not at zero, which some take for no address.
const DATA_ADDRESS: u32 = 16;

/// The size of a page of WebAssembly memory.
const PAGE_BYTES: u32 = 64 << 10;

/// The alignment that suffices for every type.
const MAX_ALIGNMENT: u32 = 16;

/// Answers and texts of one adapter: a thousand functions have less.
const MAX_DATA_BYTES: usize = 1 << 20;

const ABI: ManglingAndAbi = ManglingAndAbi::Legacy(LiftLowerAbi::Sync);

/// A component that exports what `code` imports and may not reach. None if there is
/// nothing of the kind.
///
/// # Errors
/// [`Error::Unreadable`] if the code is no component, [`Error::Adapter`] if it imports
/// something that cannot be exported.
pub fn adapter(code: &Code<'_>, inherited: &Permissions) -> Result<Option<Vec<u8>>, Error> {
    let (mut resolve, world) = read(code)?;
    let failed = |message: String| Error::Adapter { part: code.name.to_owned(), message };
    let denied: Vec<WorldKey> = resolve.worlds[world]
        .imports
        .iter()
        .filter(|(key, item)| {
            matches!(item, WorldItem::Interface { .. })
                && permission(&resolve.name_world_key(key)).is_some_and(|needed| !inherited.has(needed))
        })
        .map(|(key, _)| key.clone())
        .collect();
    if denied.is_empty() {
        return Ok(None);
    }
    guarded(
        || {
            resolve.worlds[world].imports.retain(|key, _| denied.contains(key));
            resolve.exportize(world, None, None).map_err(|error| failed(format!("{error:#}")))?;
            encode(&resolve, world).map(Some).map_err(failed)
        },
        || failed("its imports are malformed".to_owned()),
    )
}

fn encode(resolve: &Resolve, world: WorldId) -> Result<Vec<u8>, String> {
    let mut module = Adapter::new(resolve, world).module()?;
    embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8)
        .map_err(|error| format!("{error:#}"))?;
    let encoder = ComponentEncoder::default().module(&module).map_err(|error| format!("{error:#}"))?;
    encoder.validate(true).encode().map_err(|error| format!("{error:#}"))
}

/// An adapter's core module, as it is put together.
struct Adapter<'a> {
    resolve: &'a Resolve,
    world: WorldId,
    sizes: SizeAlign,
    /// Functions that give handles back, by module and name.
    drops: Vec<(String, String)>,
    answers: Vec<Answer>,
    /// What memory begins with, at [`DATA_ADDRESS`].
    data: Vec<u8>,
    /// Where texts are that were laid out already.
    texts: HashMap<String, u32>,
}

/// A function and what it answers.
struct Answer {
    export: String,
    parameters: Vec<ValType>,
    results: Vec<ValType>,
    gives_back: Vec<GivesBack>,
    value: Value,
}

/// A handle among the arguments that is given back.
struct GivesBack {
    drop: usize,
    /// The parameter that has it.
    parameter: u32,
    /// The parameter that says whether there is one.
    if_given: Option<u32>,
}

enum Value {
    Nothing,
    /// It is laid out in memory.
    At(u32),
    /// It is a number; so many bytes of it count.
    Number(u64),
    /// There is none that could be made.
    Trap,
}

/// There is no value of a type that could be made: a handle, a stream, a future.
struct Unanswerable;

impl<'a> Adapter<'a> {
    fn new(resolve: &'a Resolve, world: WorldId) -> Self {
        let mut sizes = SizeAlign::default();
        sizes.fill(resolve);
        Self {
            resolve,
            world,
            sizes,
            drops: Vec::new(),
            answers: Vec::new(),
            data: Vec::new(),
            texts: HashMap::new(),
        }
    }

    fn module(mut self) -> Result<Vec<u8>, String> {
        let resolve = self.resolve;
        for (key, item) in &resolve.worlds[self.world].exports {
            let WorldItem::Interface { id, .. } = item else { continue };
            let message = match permission(&resolve.name_world_key(key)) {
                Some(needed) => {
                    format!("access denied: this component does not inherit `{}`", needed.name())
                }
                None => "access denied".to_owned(),
            };
            for function in resolve.interfaces[*id].functions.values() {
                let answer = self.answer(key, function, &message);
                self.answers.push(answer);
                if self.data.len() > MAX_DATA_BYTES {
                    return Err("it has too many functions".to_owned());
                }
            }
        }
        Ok(self.encode())
    }

    fn answer(&mut self, key: &WorldKey, function: &WitFunction, message: &str) -> Answer {
        let signature = self.resolve.wasm_signature(AbiVariant::GuestExport, function);
        let gives_back = match signature.indirect_params {
            // So many arguments, and a handle among them, has no function that is denied.
            true => Vec::new(),
            false => self.gives_back(function),
        };
        let value = match &function.result {
            None => Value::Nothing,
            Some(ty) => match self.refusal(ty, message) {
                Err(Unanswerable) => Value::Trap,
                Ok(bytes) if signature.retptr => Value::At(self.place(&bytes, MAX_ALIGNMENT)),
                Ok(bytes) => {
                    let mut number = [0; 8];
                    for (to, from) in number.iter_mut().zip(bytes) {
                        *to = from;
                    }
                    Value::Number(u64::from_le_bytes(number))
                }
            },
        };
        let export = WasmExport::Func { interface: Some(key), func: function, kind: WasmExportKind::Normal };
        Answer {
            export: self.resolve.wasm_export_name(ABI, export),
            parameters: signature.params.iter().map(val_type).collect(),
            results: signature.results.iter().map(val_type).collect(),
            gives_back,
            value,
        }
    }

    /// Handles that are arguments, or optional ones.
    fn gives_back(&mut self, function: &WitFunction) -> Vec<GivesBack> {
        let mut found = Vec::new();
        let mut position = 0;
        let is_method = matches!(function.kind, FunctionKind::Method(_) | FunctionKind::AsyncMethod(_));
        for (number, parameter) in function.params.iter().enumerate() {
            let (ty, if_given) = match self.kind(&parameter.ty) {
                Some(TypeDefKind::Option(ty)) => (ty, Some(position)),
                _ => (&parameter.ty, None),
            };
            // A method's own object is no handle for who implements it.
            let is_self = is_method && number == 0;
            if !is_self
                && let Some(TypeDefKind::Handle(handle)) = self.kind(ty)
                && let Some(drop) = self.drop_of(handle)
            {
                let parameter = position + u32::from(if_given.is_some());
                found.push(GivesBack { drop, parameter, if_given });
            }
            position += self.flat_count(&parameter.ty);
        }
        found
    }

    fn flat_count(&self, ty: &Type) -> u32 {
        let mut storage = [WasmType::I32; Resolve::MAX_FLAT_PARAMS + 1];
        let mut flat = FlatTypes::new(&mut storage);
        self.resolve.push_flat(ty, &mut flat);
        u32::try_from(flat.to_vec().len()).unwrap_or(u32::MAX)
    }

    /// The function that gives a handle back; none where that is not to be done.
    fn drop_of(&mut self, handle: &Handle) -> Option<usize> {
        let (Handle::Own(id) | Handle::Borrow(id)) = handle;
        let resource = self.resource(*id);
        let TypeOwner::Interface(owner) = self.resolve.types[resource].owner else { return None };
        let key = WorldKey::Interface(owner);
        let intrinsic = match (self.is_exported(owner), handle) {
            // Lent by whoever called, of a type that is made here: there is no handle.
            (true, Handle::Borrow(_)) => return None,
            (true, Handle::Own(_)) => ResourceIntrinsic::ExportedDrop,
            (false, _) => ResourceIntrinsic::ImportedDrop,
        };
        let import = WasmImport::ResourceIntrinsic { interface: Some(&key), resource, intrinsic };
        let names = self.resolve.wasm_import_name(ABI, import);
        let known = self.drops.iter().position(|known| *known == names);
        Some(known.unwrap_or_else(|| {
            self.drops.push(names);
            self.drops.len() - 1
        }))
    }

    fn is_exported(&self, interface: InterfaceId) -> bool {
        self.resolve.worlds[self.world].exports.contains_key(&WorldKey::Interface(interface))
    }

    /// The resource behind names that were given to it.
    fn resource(&self, mut id: TypeId) -> TypeId {
        while let TypeDefKind::Type(Type::Id(behind)) = self.resolve.types[id].kind {
            id = behind;
        }
        id
    }

    /// What a type is behind its names; none for those that are built in.
    fn kind(&self, ty: &Type) -> Option<&'a TypeDefKind> {
        let Type::Id(id) = ty else { return None };
        match &self.resolve.types[*id].kind {
            TypeDefKind::Type(behind) => self.kind(behind),
            kind => Some(kind),
        }
    }

    fn size(&self, ty: &Type) -> usize {
        self.sizes.size(ty).size_wasm32()
    }

    /// The refusing value of a result's type, as it lies in memory.
    fn refusal(&mut self, ty: &Type, message: &str) -> Result<Vec<u8>, Unanswerable> {
        let mut bytes = vec![0; self.size(ty)];
        self.write(ty, message, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes the empty or refusing value of a type. The bytes are zero beforehand, which
    /// is what most of it consists of.
    fn write(&mut self, ty: &Type, message: &str, bytes: &mut [u8]) -> Result<(), Unanswerable> {
        let Some(kind) = self.kind(ty) else {
            return match ty {
                Type::ErrorContext => Err(Unanswerable),
                _ => Ok(()),
            };
        };
        match kind {
            TypeDefKind::Result(result) => {
                bytes[0] = 1;
                let Some(error) = &result.err else { return Ok(()) };
                let offset =
                    self.sizes.payload_offset(wit_parser::Int::U8, [result.ok.as_ref(), Some(error)]);
                self.write_error(error, message, &mut bytes[offset.size_wasm32()..])
            }
            TypeDefKind::Record(record) => {
                self.write_fields(record.fields.iter().map(|field| &field.ty), message, bytes)
            }
            TypeDefKind::Tuple(tuple) => self.write_fields(tuple.types.iter(), message, bytes),
            TypeDefKind::Variant(variant) => match variant.cases.first().map(|case| &case.ty) {
                Some(Some(ty)) => {
                    let offset = self.payload_offset(variant);
                    self.write(ty, message, &mut bytes[offset..])
                }
                _ => Ok(()),
            },
            TypeDefKind::FixedLengthList(..)
            | TypeDefKind::Handle(_)
            | TypeDefKind::Future(_)
            | TypeDefKind::Stream(_)
            | TypeDefKind::Resource
            | TypeDefKind::Unknown
            | TypeDefKind::Type(_) => Err(Unanswerable),
            TypeDefKind::Flags(_)
            | TypeDefKind::Enum(_)
            | TypeDefKind::Option(_)
            | TypeDefKind::List(_)
            | TypeDefKind::Map(..) => Ok(()),
        }
    }

    fn write_fields<'t>(
        &mut self,
        types: impl Iterator<Item = &'t Type>,
        message: &str,
        bytes: &mut [u8],
    ) -> Result<(), Unanswerable> {
        for (offset, ty) in self.sizes.field_offsets(types) {
            self.write(ty, message, &mut bytes[offset.size_wasm32()..])?;
        }
        Ok(())
    }

    /// Writes the value of an error's type that says best that something is not allowed.
    fn write_error(&mut self, ty: &Type, message: &str, bytes: &mut [u8]) -> Result<(), Unanswerable> {
        match (ty, self.kind(ty)) {
            (Type::String, _) => {
                self.write_text(message, bytes);
                Ok(())
            }
            (_, Some(TypeDefKind::Enum(cases))) => {
                let chosen = refusing(cases.cases.iter().map(|case| case.name.as_str()));
                write_number(chosen, tag_bytes(cases.cases.len()), bytes);
                Ok(())
            }
            (_, Some(TypeDefKind::Variant(variant))) => {
                let chosen = refusing(variant.cases.iter().map(|case| case.name.as_str()));
                write_number(chosen, tag_bytes(variant.cases.len()), bytes);
                match variant.cases.get(chosen).and_then(|case| case.ty.as_ref()) {
                    Some(payload) => {
                        let offset = self.payload_offset(variant);
                        self.write_error(payload, message, &mut bytes[offset..])
                    }
                    None => Ok(()),
                }
            }
            (_, Some(TypeDefKind::Option(ty))) if *ty == Type::String => {
                bytes[0] = 1;
                let offset = self.sizes.payload_offset(wit_parser::Int::U8, [Some(ty)]);
                self.write_text(message, &mut bytes[offset.size_wasm32()..]);
                Ok(())
            }
            _ => self.write(ty, message, bytes),
        }
    }

    fn payload_offset(&self, variant: &Variant) -> usize {
        let cases = variant.cases.iter().map(|case| case.ty.as_ref());
        self.sizes.payload_offset(variant.tag(), cases).size_wasm32()
    }

    fn write_text(&mut self, text: &str, bytes: &mut [u8]) {
        let address = match self.texts.get(text) {
            Some(address) => *address,
            None => {
                let address = self.place(text.as_bytes(), 1);
                self.texts.insert(text.to_owned(), address);
                address
            }
        };
        bytes[..4].copy_from_slice(&address.to_le_bytes());
        let length = u32::try_from(text.len()).unwrap_or(0);
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
    }

    /// Puts bytes where memory begins with them, and says where.
    fn place(&mut self, bytes: &[u8], alignment: u32) -> u32 {
        let end = DATA_ADDRESS + u32::try_from(self.data.len()).unwrap_or(u32::MAX - DATA_ADDRESS);
        let address = end.next_multiple_of(alignment);
        self.data.resize((address - DATA_ADDRESS) as usize, 0);
        self.data.extend_from_slice(bytes);
        address
    }

    fn encode(self) -> Vec<u8> {
        let data_end = DATA_ADDRESS + u32::try_from(self.data.len()).unwrap_or(0);
        let arguments = data_end.next_multiple_of(MAX_ALIGNMENT);

        let (mut types, mut imports) = (TypeSection::new(), ImportSection::new());
        let (mut functions, mut exports, mut code) =
            (FunctionSection::new(), ExportSection::new(), CodeSection::new());
        types.ty().function([ValType::I32], []);
        for (module, name) in &self.drops {
            imports.import(module, name, EntityType::Function(0));
        }
        let drops_count = u32::try_from(self.drops.len()).unwrap_or(0);
        types.ty().function([ValType::I32; 4], [ValType::I32]);
        functions.function(1);
        exports.export("cabi_realloc", ExportKind::Func, drops_count);
        code.function(&take_arguments(arguments));
        for (number, answer) in self.answers.iter().enumerate() {
            let number = u32::try_from(number).unwrap_or(0);
            types.ty().function(answer.parameters.iter().copied(), answer.results.iter().copied());
            functions.function(2 + number);
            exports.export(&answer.export, ExportKind::Func, drops_count + 1 + number);
            code.function(&answer.body());
        }
        let mut memories = MemorySection::new();
        memories.memory(MemoryType {
            minimum: u64::from(arguments.div_ceil(PAGE_BYTES).max(1)),
            maximum: None,
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
        exports.export("memory", ExportKind::Memory, 0);
        let mut data = DataSection::new();
        data.active(0, &ConstExpr::i32_const(DATA_ADDRESS.cast_signed()), self.data.iter().copied());

        let mut module = Module::new();
        module.section(&types).section(&imports).section(&functions).section(&memories);
        module.section(&exports).section(&code).section(&data);
        module.finish()
    }
}

impl Answer {
    fn body(&self) -> Function {
        let mut function = Function::new([]);
        let mut body = function.instructions();
        for given in &self.gives_back {
            if let Some(if_given) = given.if_given {
                body.local_get(if_given).if_(BlockType::Empty);
            }
            body.local_get(given.parameter).call(u32::try_from(given.drop).unwrap_or(0));
            if given.if_given.is_some() {
                body.end();
            }
        }
        match (&self.value, self.results.first()) {
            (Value::Nothing, _) => {}
            (Value::Trap, _) => drop(body.unreachable()),
            (Value::At(address), _) => drop(body.i32_const(address.cast_signed())),
            (Value::Number(number), Some(ty)) => push_number(&mut body, *number, *ty),
            (Value::Number(_), None) => {}
        }
        body.end();
        function
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a number of 32 bits was zero above them")]
fn push_number(body: &mut InstructionSink<'_>, number: u64, ty: ValType) {
    match ty {
        ValType::I64 => body.i64_const(number.cast_signed()),
        // Only zero is ever answered in floating point.
        ValType::F32 => body.f32_const(0.0_f32.into()),
        ValType::F64 => body.f64_const(0.0_f64.into()),
        _ => body.i32_const((number as u32).cast_signed()),
    };
}

/// Finds room for arguments: always the same, since nobody reads them.
fn take_arguments(address: u32) -> Function {
    const NEW_BYTES: u32 = 3;
    const PAGES: u32 = 4;
    let mut function = Function::new([(1, ValType::I32)]);
    let mut body = function.instructions();
    // The pages that the memory needs beyond those it has.
    body.local_get(NEW_BYTES).i64_extend_i32_u();
    body.i64_const(i64::from(address) + i64::from(PAGE_BYTES) - 1).i64_add();
    body.i64_const(i64::from(PAGE_BYTES)).i64_div_u();
    body.i32_wrap_i64().memory_size(0).i32_sub().local_tee(PAGES);
    body.i32_const(0).i32_gt_s().if_(BlockType::Empty);
    body.local_get(PAGES).memory_grow(0).i32_const(-1).i32_eq().if_(BlockType::Empty);
    body.unreachable().end().end();
    body.i32_const(address.cast_signed());
    body.end();
    function
}

/// The number of the case that says best that something is not allowed.
fn refusing<'n>(cases: impl Iterator<Item = &'n str> + Clone) -> usize {
    REFUSALS.iter().find_map(|refusal| cases.clone().position(|case| case == *refusal)).unwrap_or(0)
}

fn tag_bytes(cases_count: usize) -> usize {
    match cases_count {
        0..=0x100 => 1,
        0x101..=0x1_0000 => 2,
        _ => 4,
    }
}

fn write_number(number: usize, size: usize, bytes: &mut [u8]) {
    let number = number.to_le_bytes();
    bytes[..size].copy_from_slice(&number[..size]);
}

fn val_type(ty: &WasmType) -> ValType {
    match ty {
        WasmType::I32 | WasmType::Pointer | WasmType::Length => ValType::I32,
        WasmType::I64 | WasmType::PointerOrI64 => ValType::I64,
        WasmType::F32 => ValType::F32,
        WasmType::F64 => ValType::F64,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here is a failed test")]

    use std::path::Path;

    use super::*;

    /// What is in a module's memory at first, by address.
    fn memory(module: &Adapter<'_>) -> Vec<u8> {
        let mut memory = vec![0; DATA_ADDRESS as usize];
        memory.extend_from_slice(&module.data);
        memory
    }

    fn text_at(memory: &[u8], address: usize) -> String {
        let number = |at: usize| u32::from_le_bytes(memory[at..at + 4].try_into().unwrap()) as usize;
        let (start, length) = (number(address), number(address + 4));
        String::from_utf8(memory[start..start + length].to_vec()).unwrap()
    }

    #[test]
    fn every_interface_of_the_host_can_be_answered_for() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
        let mut whole = Resolve::default();
        let (package, _) = whole.push_dir(folder).unwrap();
        for (name, world) in whole.packages[package].worlds.clone() {
            let mut resolve = whole.clone();
            let denied: Vec<WorldKey> = resolve.worlds[world]
                .imports
                .keys()
                .filter(|key| permission(&resolve.name_world_key(key)).is_some())
                .cloned()
                .collect();
            if denied.is_empty() {
                continue;
            }
            resolve.worlds[world].imports.retain(|key, _| denied.contains(key));
            resolve.exportize(world, None, None).unwrap();
            let component = encode(&resolve, world).unwrap_or_else(|error| panic!("{name}: {error}"));
            let (again, id) = read(&Code { name: "adapter", bytes: &component }).unwrap();
            assert_eq!(again.worlds[id].exports.len(), denied.len(), "{name}");
            for key in again.worlds[id].imports.keys() {
                let import = again.name_world_key(key);
                assert_eq!(permission(&import), None, "{name} asks the host for {import}");
            }
        }
    }

    #[test]
    fn the_answer_is_the_error_that_says_so() {
        let text = "package a:b;\n\
            interface i {\n\
              variant error { other(string), access-denied, }\n\
              variant texts { success, connection-failed(string), }\n\
              enum plain { fine, error, }\n\
              record both { one: list<u8>, two: option<u32> }\n\
              resource thing { constructor(); }\n\
              f-variant: func() -> result<u64, error>;\n\
              f-text: func() -> result<_, texts>;\n\
              f-enum: func() -> result<_, plain>;\n\
              f-unit: func() -> result;\n\
              f-empty: func() -> both;\n\
              f-number: func() -> u64;\n\
              f-thing: func() -> thing;\n\
              f-nothing: func(thing: thing, maybe: option<thing>);\n\
            }\n\
            world w { import i; }\n";
        let mut resolve = Resolve::default();
        let package = resolve.push_source("a.wit", text).unwrap();
        let world = resolve.select_world(&[package], None).unwrap();
        resolve.exportize(world, None, None).unwrap();
        let (key, item) = resolve.worlds[world].exports.first().unwrap();
        let WorldItem::Interface { id, .. } = item else { panic!("an interface") };
        let mut module = Adapter::new(&resolve, world);
        let mut answer = |name: &str| {
            let function = &resolve.interfaces[*id].functions[name];
            let answer = module.answer(key, function, "access denied");
            (answer, memory(&module))
        };
        let at = |(answer, memory): (Answer, Vec<u8>)| match answer.value {
            Value::At(address) => (address as usize, memory),
            _ => panic!("laid out in memory"),
        };
        // An error, then the case: after a payload that is aligned to eight.
        let (address, memory) = at(answer("f-variant"));
        assert_eq!((memory[address], memory[address + 8]), (1, 1));
        let (address, memory) = at(answer("f-text"));
        assert_eq!((memory[address], memory[address + 4]), (1, 1));
        assert_eq!(text_at(&memory, address + 8), "access denied");
        let (address, memory) = at(answer("f-enum"));
        assert_eq!((memory[address], memory[address + 1]), (1, 1));
        assert!(matches!(answer("f-unit").0.value, Value::Number(1)));
        let (address, memory) = at(answer("f-empty"));
        assert!(memory[address..address + 16].iter().all(|byte| *byte == 0));
        assert!(matches!(answer("f-number").0.value, Value::Number(0)));
        assert!(matches!(answer("f-thing").0.value, Value::Trap));
        let (nothing, _) = answer("f-nothing");
        assert!(matches!(nothing.value, Value::Nothing));
        let given: Vec<_> =
            nothing.gives_back.iter().map(|given| (given.parameter, given.if_given)).collect();
        assert_eq!(given, [(0, None), (2, Some(1))]);
        assert!(encode(&resolve, world).is_ok());
    }

    #[test]
    fn what_is_inherited_is_not_denied() {
        let bytes = wat::parse_str(
            r#"(component
                (import "fermyon:spin/variables@2.0.0" (instance
                    (export "get" (func (param "name" string) (result string)))))
                (import "wasi:cli/environment@0.2.3" (instance
                    (export "get-arguments" (func (result (list string)))))))"#,
        )
        .unwrap();
        let code = Code { name: "it", bytes: &bytes };
        let exports = |inherited: &Permissions| {
            let adapter = adapter(&code, inherited).unwrap();
            adapter.map_or(Vec::new(), |bytes| {
                let (resolve, world) = read(&Code { name: "adapter", bytes: &bytes }).unwrap();
                let keys = resolve.worlds[world].exports.keys();
                keys.map(|key| resolve.name_world_key(key)).collect()
            })
        };
        assert_eq!(exports(&Permissions::all()), Vec::<String>::new());
        assert_eq!(
            exports(&Permissions::none()),
            ["fermyon:spin/variables@2.0.0", "wasi:cli/environment@0.2.3"]
        );
        let some = wisp_manifest::model::InheritConfiguration::Some(vec![
            wisp_manifest::model::Inheritable::Variables,
        ]);
        let some = Permissions::of(Some(&some), Permissions::none());
        assert_eq!(exports(&some), ["wasi:cli/environment@0.2.3"]);
    }
}
