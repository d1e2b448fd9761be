//! Components made of components: dependencies, middleware, denied capabilities.
